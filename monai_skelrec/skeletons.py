"""Algorithm 1 of the paper, on plain NumPy arrays: label map -> skeleton -> tubed skeleton."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.graph import MCP_Geometric
from skimage.morphology import skeletonize

__all__ = ["skeleton", "tubed_skeleton"]


def skeleton(mask: np.ndarray, *, restore_lost: bool = True) -> np.ndarray:
    """Thin a mask (H, W) or (H, W, D) to its centreline, one voxel wide; see :py:func:`tubed_skeleton`."""
    mask = np.asarray(mask) != 0
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask must be 2D or 3D, got shape {mask.shape}.")
    thin = skeletonize(mask).astype(bool)
    if not restore_lost:
        return thin
    components, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    kept = np.bincount(components[thin], minlength=count + 1)
    for index, box in enumerate(ndimage.find_objects(components), start=1):
        if kept[index] == 0:
            thin[box] |= _path(components[box] == index)
    return thin


def _path(component: np.ndarray) -> np.ndarray:
    component = np.pad(component, 1)
    flat = np.where(component, 1.0, -1.0)
    start = tuple(np.argwhere(component)[0])
    for _ in range(2):
        costs, _ = MCP_Geometric(flat).find_costs([start])
        start, end = np.unravel_index(np.argmax(np.where(component, costs, -1)), component.shape), start
    depth = ndimage.distance_transform_edt(component)
    router = MCP_Geometric(np.where(component, 1 + (depth.max() - depth) ** 2, -1.0))
    router.find_costs([start], [end])
    out = np.zeros_like(component)
    out[tuple(np.transpose(router.traceback(end)))] = True
    return out[(slice(1, -1),) * out.ndim]


def tubed_skeleton(
    label: np.ndarray,
    radius: float = 2,
    *,
    groups: str | Sequence[Sequence[int]] | None = None,
    ignore_index: int | None = None,
    spacing: Sequence[float] | None = None,
    restore_lost: bool = True,
) -> np.ndarray:
    """Thin the foreground to its centreline, thicken that to a tube, colour it by class."""
    label = np.asarray(label)
    classes = [c for c in np.unique(label).tolist() if c > 0 and c != ignore_index]
    sets = [classes] if groups is None else [[c] for c in classes] if isinstance(groups, str) else groups
    out = np.zeros_like(label)
    for members in sets:
        mask = np.isin(label, list(members))
        tube = _dilate(skeleton(mask, restore_lost=restore_lost), radius, spacing) & mask
        if restore_lost:
            for value in set(members) & set(classes):
                alone = label == value
                if not tube[alone].any():
                    tube |= _dilate(skeleton(alone), radius, spacing) & alone
        out[tube] = label[tube]
    return out


def _dilate(thin: np.ndarray, radius: float, spacing: Sequence[float] | None) -> np.ndarray:
    if not thin.any() or radius == 0:
        return thin
    if spacing is not None:
        return ndimage.distance_transform_edt(~thin, sampling=spacing) <= radius * (1 + 1e-6)
    return ndimage.binary_dilation(thin, iterations=int(radius))
