"""Step "label map -> picture", on plain NumPy arrays: volumes turned upright and seen along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

__all__ = ["COLOURS", "View", "colour_classes", "maximum_intensity", "turn_upright", "view_case"]

# Ordered so that the first N differ most from each other, from red and from black, in ordinary and in simulated red-,
# green- and blue-blind vision (distances in OKLab, blindness after Machado et al. 2009).
COLOURS = np.array(
    [
        [86, 180, 233],
        [254, 217, 23],
        [116, 83, 229],
        [121, 234, 194],
        [163, 103, 138],
        [251, 152, 74],
        [195, 146, 154],
        [5, 141, 29],
        [112, 135, 234],
        [177, 49, 177],
        [174, 202, 239],
        [182, 251, 149],
        [217, 80, 191],
        [158, 142, 101],
        [186, 183, 138],
        [247, 216, 254],
    ]
)


@dataclass(frozen=True)
class View:
    """Pictures of one case as rows from the bottom up, their size in the unit of the spacing, and points on them."""

    panels: dict[str, np.ndarray]
    extent: tuple[float, float, float, float]
    missed: np.ndarray
    interpolation: str

    @property
    def ratio(self) -> float:
        """Height by width."""
        left, right, bottom, top = self.extent
        return (top - bottom) / (right - left)


def view_case(
    *,
    image: np.ndarray,
    reference: np.ndarray,
    pred: np.ndarray,
    tube: np.ndarray,
    missed: np.ndarray,
    affine: np.ndarray | None,
    spacing: tuple[float, ...],
) -> View:
    """Show one case in four panels: image, reference, prediction, tubed skeleton.

    Args:
        image: shape (H, W) and RGB from 0 to 1, or (H, W, D) in any unit.
        reference: class indices on the grid of the image.
        pred: class indices.
        tube: class indices.
        missed: boolean, the points to be marked.
        affine: of a volume, see :py:func:`turn_upright`; volumes are seen along the axis in which they extend least.
        spacing: edges of a voxel.
    """
    if reference.ndim == 2:
        dim = 0.3 * image
        volumes = {"Reference": reference, "Prediction": pred, "Tubed skeleton of reference": tube}
        panels = {"Image": image}
        for title, label in volumes.items():
            colours = np.vstack([[0, 0, 0], COLOURS])[
                np.where(label > 0, (label.astype(int) - 1) % len(COLOURS) + 1, 0)
            ]
            panels[title] = np.where(label[..., None] > 0, colours / 255, dim)
        points = np.argwhere(missed)
        height, width = reference.shape
        extent = (0.0, width * spacing[1], 0.0, height * spacing[0])
        places = np.stack([(points[:, 1] + 0.5) * spacing[1], (height - points[:, 0] - 0.5) * spacing[0]], axis=1)
        return View({title: panel[::-1] for title, panel in panels.items()}, extent, places, "antialiased")

    stored = (image, reference, pred, tube, missed)
    image, reference, pred, tube, missed = (turn_upright(volume, affine) for volume in stored)
    spacing = _upright_spacing(spacing, affine)
    axis = int(np.argmin(np.multiply(reference.shape, spacing)))
    across, up = (other for other in range(3) if other != axis)
    black = np.zeros((reference.shape[across], reference.shape[up], 3))
    shadow = black + 0.2 * reference.max(axis=axis).astype(bool)[..., None]
    panels = {
        "Image (maximum projection)": maximum_intensity(image, axis)[..., None].repeat(3, axis=-1),
        "Reference": colour_classes(reference, axis, spacing, black),
        "Prediction": colour_classes(pred, axis, spacing, black),
        "Tubed skeleton of reference": colour_classes(tube, axis, spacing, shadow),
    }
    points = np.unique(np.argwhere(missed)[:, [across, up]], axis=0)
    extent = (0.0, black.shape[0] * spacing[across], 0.0, black.shape[1] * spacing[up])
    places = (points + 0.5) * (spacing[across], spacing[up])
    return View({title: panel.swapaxes(0, 1) for title, panel in panels.items()}, extent, places, "nearest")


def turn_upright(volume: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """Turn a volume so that its axes run to the patient's left, to the front and up, without resampling.

    Drawn with the first axis to the right and the last one up, this is how radiologists look at it.

    Args:
        volume: shape (H, W, D).
        affine: from indices to RAS+ coordinates, shape (4, 4); None leaves the volume as it is.
    """
    if affine is None:
        return volume
    return apply_orientation(volume, ornt_transform(io_orientation(affine), axcodes2ornt("LAS")))


def maximum_intensity(volume: np.ndarray, axis: int) -> np.ndarray:
    """Brightest voxel along an axis, from 0 to 1, the extreme half percent clipped; shape of the other axes."""
    projection = volume.max(axis=axis).astype(np.float32)
    low, high = np.percentile(projection, [0.5, 99.5])
    return np.clip((projection - low) / max(high - low, 1e-6), 0, 1)


def colour_classes(label: np.ndarray, axis: int, spacing: Sequence[float], background: np.ndarray) -> np.ndarray:
    """See the classes of a label map along an axis, as lit solids in their colours.

    Of classes that lie in one line of sight the smaller one is seen: a nerve inside a jaw, a thin artery behind a thick
    one.

    Args:
        label: class indices, shape (H, W, D).
        axis: to look along; from the front for axis 1, from the side of index 0 otherwise.
        spacing: edges of a voxel.
        background: what is seen between the classes, RGB from 0 to 1, shape of the other axes and 3.

    Returns:
        RGB from 0 to 1, shape of ``background``.
    """
    picture = background.copy()
    sizes = np.bincount(label.ravel())
    sizes[0] = 0
    seen = np.flip(label, axis) if axis == 1 else label
    in_plane = [spacing[other] for other in range(3) if other != axis]
    for index in np.argsort(-sizes)[: np.count_nonzero(sizes)]:
        solid = seen == index
        hit = solid.any(axis=axis)
        light = _light(solid.argmax(axis=axis) * spacing[axis], hit, in_plane, spacing[axis])
        picture[hit] = light[hit, None] * COLOURS[(index - 1) % len(COLOURS)] / 255
    return picture


def _over(picture: np.ndarray, label: np.ndarray) -> np.ndarray:
    colours = COLOURS[(label.astype(int) - 1) % len(COLOURS)] / 255
    return np.where(label[..., None] > 0, colours, picture)


def _upright_spacing(spacing: tuple[float, ...], affine: np.ndarray | None) -> tuple[float, ...]:
    if affine is None:
        return spacing
    # world axis that each index axis runs along
    along = np.argmax(np.abs(affine[:3, :3]) / np.asarray(spacing), axis=0)
    return tuple(float(spacing[axis]) for axis in np.argsort(along))


def _light(depth: np.ndarray, hit: np.ndarray, spacing: Sequence[float], step: float) -> np.ndarray:
    """Brightness of a surface lit from the viewer's side; steps of one voxel are smoothed away."""
    softness = max(1.0, step / float(np.mean(spacing)))
    inside = ndimage.gaussian_filter(hit.astype(float), softness)
    smooth = ndimage.gaussian_filter(np.where(hit, depth, 0.0), softness) / np.maximum(inside, 1e-3)
    steepness = np.zeros(depth.shape)
    for axis, size in enumerate(spacing):
        if depth.shape[axis] > 1:
            steepness += np.nan_to_num(np.gradient(np.where(hit, smooth, np.nan), size, axis=axis)) ** 2
    # the rim of a solid turns away from the viewer, whatever its depth says
    rim = np.clip(2 * ndimage.gaussian_filter(hit.astype(float), 1) - 1, 0, 1)
    return (0.55 + 0.45 / np.sqrt(1 + steepness)) * (0.8 + 0.2 * rim)
