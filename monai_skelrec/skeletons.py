"""Algorithm 1 of the paper, on plain NumPy arrays: label map -> skeleton -> tubed skeleton.

Nothing here knows about channels, batches, dictionaries or devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from .centrelines import restore
from .thinning import thin
from .voxels import Voxels, connect

__all__ = ["skeleton", "tubed_skeleton"]

# tube voxels looked up at a time; bounds the memory of a large radius
_CHUNK = 1 << 20


def tubed_skeleton(
    label: np.ndarray,
    radius: float = 2,
    *,
    groups: str | Sequence[Sequence[int]] | None = None,
    ignore_index: int | None = None,
    spacing: Sequence[float] | None = None,
    restore_lost: bool = True,
) -> np.ndarray:
    """Thin the foreground to its centreline, thicken that to a tube, colour it by class.

    A voxel keeps its label where it lies within ``radius`` of its own group's skeleton; everywhere else is 0.

    With ``restore_lost=False`` this is the target of the paper's own code, voxel for voxel: scikit-image's
    ``skeletonize`` of ``label > 0``, two dilations by a cross, times the label. That target has holes, because
    thinning deletes whole objects of even thickness (https://github.com/scikit-image/scikit-image/issues/3757). With
    ``restore_lost=True`` nothing of it changes and nothing is lost: a component that thinning deletes gets the tube of
    a centreline of its own, and a class that is still without a tube, because a thicker neighbour took the skeleton,
    is thinned alone. What is added stays inside that component or class. A component that thinning deletes only in
    part stays as scikit-image leaves it.

    Args:
        label: class indices, (H, W) or (H, W, D); 0 is background. Integers, booleans, or floats of integer value.
        radius: L1 radius of the tube in voxels, a whole number; 0 keeps the bare skeleton. With ``spacing``, Euclidean
            radius in the unit of ``spacing``.
        groups: which classes are thinned together. None: all of them, which protects the joints between classes.
            "each": every class alone, so that a canal inside a jaw keeps its centreline. A list of lists of labels:
            group by group; labels that are in no group get no tube.
        ignore_index: voxels of this value count as background and carry no tube.
        spacing: size of a voxel along each axis, for a tube as wide on every axis whatever the voxel. Thinning itself
            stays in voxels.
        restore_lost: see above.

    Returns:
        Array of the shape and dtype of ``label``: the class on the tube, 0 elsewhere.

    Raises:
        ValueError: when ``label`` is not 2D or 3D or holds anything but integers from 0 (and ``ignore_index``), or
            ``radius``, ``groups``, ``ignore_index`` or ``spacing`` is none of the above.

    Example:
        >>> tubed_skeleton(np.array([[0, 0, 0, 0], [3, 3, 5, 5], [0, 0, 0, 0]]), radius=0)
        array([[0, 0, 0, 0],
               [3, 3, 5, 5],
               [0, 0, 0, 0]])
    """
    label = np.asarray(label)
    if label.ndim not in (2, 3):
        raise ValueError(f"label must be 2D or 3D, (H, W) or (H, W, D), got shape {label.shape}.")
    offsets = _ball(radius, spacing, label.shape)
    if ignore_index == 0:
        raise ValueError("ignore_index must differ from 0, the background.")
    voxels = Voxels.of(label != 0, margin=int(offsets.max()) + 1)
    value = _class_indices(label[tuple(voxels.coordinates)], ignore_index)
    part = _parts(value, groups, ignore_index)
    if part.min(initial=0) < 0:
        voxels, value, part = voxels.where(part >= 0), value[part >= 0], part[part >= 0]

    kept, complete = thin(voxels, part)
    tube = _within(offsets, voxels, kept, part)
    if restore_lost:
        if not complete:
            component = connect(voxels, part)
            tube |= _within(offsets, voxels, restore(voxels, component, kept), component)
        robbed = ~np.isin(value, value[tube])
        if robbed.any():
            alone, classes = voxels.where(robbed), value[robbed]
            tube[robbed] = _within(offsets, alone, _thin_and_restore(alone, classes), classes)

    out = np.zeros(label.shape, label.dtype)
    at = tuple(voxels.coordinates[:, tube])
    out[at] = label[at]
    return out


def skeleton(mask: np.ndarray, *, restore_lost: bool = True) -> np.ndarray:
    """Thin a mask to its centreline, one voxel wide.

    Args:
        mask: (H, W) or (H, W, D); true, or not 0, inside.
        restore_lost: give each component (26 neighbours, 8 in 2D) that scikit-image's ``skeletonize`` deletes a
            centreline of its own; without it, and on all other components, the result is scikit-image's.

    Returns:
        Booleans of the same shape.

    Raises:
        ValueError: when ``mask`` is not 2D or 3D.
    """
    mask = np.asarray(mask)
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask must be 2D or 3D, (H, W) or (H, W, D), got shape {mask.shape}.")
    voxels = Voxels.of(mask != 0)
    whole = np.zeros(voxels.keys.size, np.int64)
    chosen = _thin_and_restore(voxels, whole) if restore_lost else thin(voxels, whole)[0]
    out = np.zeros(mask.shape, bool)
    out[tuple(voxels.coordinates[:, chosen])] = True
    return out


def _thin_and_restore(voxels: Voxels, part: np.ndarray) -> np.ndarray:
    kept, complete = thin(voxels, part)
    return kept if complete else kept | restore(voxels, connect(voxels, part), kept)


def _within(offsets: np.ndarray, voxels: Voxels, seeds: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Mark the listed voxels that one of ``offsets`` reaches from a seed of the same part."""
    reached = seeds.copy()
    start = np.flatnonzero(seeds)
    rows = max(1, _CHUNK // max(1, start.size))
    for first in range(0, len(offsets), rows):
        keys = voxels.keys[start] + (offsets[first : first + rows] @ voxels.steps)[:, np.newaxis]
        position = np.minimum(np.searchsorted(voxels.keys, keys), max(0, voxels.keys.size - 1))
        found = (voxels.keys[position] == keys) & (part[position] == part[start])
        reached[position[found]] = True
    return reached


def _ball(radius: float, spacing: Sequence[float] | None, shape: tuple[int, ...]) -> np.ndarray:
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError(f"radius must be a number from 0, got {radius}.")
    if spacing is None:
        if radius != int(radius):
            raise ValueError(f"radius counts voxels, got {radius}; give spacing as well for a physical radius.")
        size = np.ones(len(shape))
    else:
        size = np.asarray(spacing, dtype=float)
        if size.shape != (len(shape),):
            raise ValueError(f"spacing must have {len(shape)} values, one an axis, got {spacing}.")
        if not (np.isfinite(size).all() and (size > 0).all()):
            raise ValueError(f"spacing must be positive, got {spacing}.")
    # rounding must not decide about a voxel that lies at the radius exactly
    limit = radius * (1 + 1e-6)
    reach = [min(int(limit / step), max(length, 1) - 1) for step, length in zip(size, shape)]
    offsets = np.array(list(product(*(range(-most, most + 1) for most in reach))))
    length = np.abs(offsets).sum(axis=1) if spacing is None else np.linalg.norm(offsets * size, axis=1)
    return offsets[length <= limit]


def _class_indices(value: np.ndarray, ignore_index: int | None) -> np.ndarray:
    if value.dtype.kind not in "biuf":
        raise ValueError(f"label must hold integers, got dtype {value.dtype}.")
    if value.dtype.kind == "f":
        wrong = value[~(np.isfinite(value) & (value == np.round(value)))]
        if wrong.size:
            raise ValueError(
                f"label must hold integers (class indices), got the value {wrong[0]}; resample by nearest voxel."
            )
    value = value.astype(np.int64)
    negative = value[(value < 0) & (value != ignore_index)] if ignore_index is not None else value[value < 0]
    if negative.size:
        raise ValueError(
            f"label must hold class indices from 0, got the value {negative[0]}; "
            "if such voxels are to be ignored, name the value with ignore_index."
        )
    return value


def _parts(value: np.ndarray, groups: str | Sequence[Sequence[int]] | None, ignore_index: int | None) -> np.ndarray:
    """Number the group of each voxel, -1 for none."""
    if groups is None:
        part = np.zeros(value.size, np.int64)
    elif isinstance(groups, str):
        if groups != "each":
            raise ValueError(f'groups must be None, "each" or a list of lists of labels, got "{groups}".')
        part = value.copy()
    else:
        part = np.full(value.size, -1, np.int64)
        seen: set[int] = set()
        for number, group in enumerate(groups):
            if isinstance(group, (str, int)) or not isinstance(group, Sequence):
                raise ValueError(f"groups must be a list of lists of labels, got {groups}.")
            for member in group:
                if member in seen:
                    raise ValueError(f"groups must name each label once, but {member} stands in them twice.")
                if member == ignore_index:
                    raise ValueError(f"groups must not name {member}, which is the ignore_index.")
                if isinstance(member, bool) or not isinstance(member, (int, np.integer)) or member <= 0:
                    raise ValueError(f"groups must name labels, whole numbers from 1 (0 is background), got {member}.")
                seen.add(member)
                part[value == member] = number
        if not seen:
            raise ValueError(f"groups must name at least one label, got {groups}.")
    if ignore_index is not None:
        part[value == ignore_index] = -1
    return part
