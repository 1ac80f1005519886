"""Step "label map -> picture", on plain NumPy arrays: volumes turned upright and seen along one axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

__all__ = [
    "COLOURS",
    "PROJECTION",
    "View",
    "colour_classes",
    "maximum_intensity",
    "turn_upright",
    "view_case",
    "view_slice",
]

PROJECTION, _TUBE = "Image (maximum projection)", "Tubed skeleton of reference"

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
    """Pictures of one case as rows from the bottom up, their size in the unit of the spacing, and points on them.

    Attributes:
        panels: RGB from 0 to 1, by title.
        extent: left, right, bottom, top.
        marks: for each kind of mark its points, across and up, shape (number, 2).
        classes: by title of a label map's panel, for each class index a point on it.
        interpolation: matplotlib's name for how pixels are enlarged.
        seen: where the viewer stands, in words.
    """

    panels: dict[str, np.ndarray]
    extent: tuple[float, float, float, float]
    marks: dict[str, np.ndarray]
    classes: dict[str, dict[int, np.ndarray]]
    interpolation: str
    seen: str

    @property
    def ratio(self) -> float:
        """Height by width."""
        left, right, bottom, top = self.extent
        return (top - bottom) / (right - left)


def view_case(
    *,
    image: np.ndarray | None,
    reference: np.ndarray,
    pred: np.ndarray,
    tube: np.ndarray | None,
    marks: Mapping[str, np.ndarray],
    affine: np.ndarray | None,
    spacing: tuple[float, ...],
) -> View:
    """Show one case as a whole: image, reference, prediction, tubed skeleton.

    Args:
        image: shape (H, W) and RGB from 0 to 1, or (H, W, D) in any unit; None where there is none.
        reference: class indices on the grid of the image.
        pred: class indices.
        tube: class indices; None for no such panel.
        marks: for each kind of mark the points, boolean, on the grid of the image.
        affine: of a volume, see :py:func:`turn_upright`; volumes are seen along the axis in which they extend least.
        spacing: edges of a voxel.
    """
    labels = {"Reference": reference, "Prediction": pred, **({} if tube is None else {_TUBE: tube})}
    if reference.ndim == 2:
        dim = np.zeros((*reference.shape, 3)) if image is None else 0.3 * image
        panels = {} if image is None else {"Image": image}
        panels |= {title: _over(dim, label) for title, label in labels.items()}
        height, width = reference.shape
        extent = (0.0, width * spacing[1], 0.0, height * spacing[0])

        def place(at: np.ndarray) -> np.ndarray:
            return np.stack([(at[:, 1] + 0.5) * spacing[1], (height - at[:, 0] - 0.5) * spacing[0]], axis=1)

        return View(
            {title: panel[::-1] for title, panel in panels.items()},
            extent,
            {kind: place(np.argwhere(mask)) for kind, mask in marks.items()},
            {title: {index: place(at[None])[0] for index, at in _middles(label)} for title, label in labels.items()},
            "antialiased",
            "as stored",
        )

    labels = {title: turn_upright(label, affine) for title, label in labels.items()}
    spacing = _upright_spacing(spacing, affine)
    axis = _thin_axis(labels["Reference"].shape, spacing)
    black = np.zeros((*np.delete(labels["Reference"].shape, axis), 3))
    shadow = black + 0.2 * labels["Reference"].max(axis=axis).astype(bool)[..., None]
    panels = {}
    if image is not None:
        panels[PROJECTION] = maximum_intensity(turn_upright(image, affine), axis)[..., None].repeat(3, axis=-1)
    for title, label in labels.items():
        panels[title] = colour_classes(label, axis, spacing, shadow if title == _TUBE else black)
    points = {kind: np.argwhere(turn_upright(mask, affine)) for kind, mask in marks.items()}
    return _look(panels, points, labels, axis, spacing, _viewpoint(axis, affine))


def view_slice(
    *,
    image: np.ndarray | None,
    reference: np.ndarray,
    pred: np.ndarray,
    marks: Mapping[str, np.ndarray],
    affine: np.ndarray | None,
    spacing: tuple[float, ...],
) -> View:
    """Show one slice of a volume, where most is marked: image, and both label maps laid over it.

    Args as :py:func:`view_case`, of volumes. The slice is perpendicular to the axis that :py:func:`view_case` looks
    along; marks of its two neighbours are shown with its own. Where nothing is marked, it is the slice with most of
    the reference, or else of the prediction.
    """
    labels = {"Reference": turn_upright(reference, affine), "Prediction": turn_upright(pred, affine)}
    spacing = _upright_spacing(spacing, affine)
    shape = labels["Reference"].shape
    axis = _thin_axis(shape, spacing)
    points = {kind: np.argwhere(turn_upright(mask, affine)) for kind, mask in marks.items()}
    places = np.concatenate([np.zeros((0, 3), dtype=int), *points.values()])[:, axis]
    marked = np.convolve(np.bincount(places, minlength=shape[axis]), [1, 1, 1], mode="same")
    others = tuple(other for other in range(3) if other != axis)
    filled = [np.count_nonzero(label, axis=others) for label in labels.values()]
    most = next((counts for counts in (marked, *filled) if counts.any()), marked)
    at = int(np.argmax(most))
    grey = np.zeros((*np.delete(shape, axis), 3))
    panels = {}
    if image is not None:
        upright = turn_upright(image, affine)
        # the window of the whole crop: one slice alone may hold nothing but noise
        low, high = np.percentile(upright, [0.5, 99.5])
        plain = np.clip((upright.take(at, axis=axis).astype(np.float32) - low) / max(float(high - low), 1e-6), 0, 1)
        grey = plain[..., None].repeat(3, axis=-1)
        panels["Image"] = grey
    labels = {title: label[(slice(None),) * axis + (slice(at, at + 1),)] for title, label in labels.items()}
    for title, label in labels.items():
        panels[title] = _over(grey, label.max(axis=axis), strength=0.6 if image is not None else 1)
    near = {kind: where[abs(where[:, axis] - at) <= 1] for kind, where in points.items()}
    return _look(panels, near, labels, axis, spacing, f"{_viewpoint(axis, affine)}, slice {at + 1} of {shape[axis]}")


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


def _look(
    panels: dict[str, np.ndarray],
    points: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    axis: int,
    spacing: Sequence[float],
    seen: str,
) -> View:
    """A view along an axis: panels over the other two axes, points in the volume, and the label maps that are seen."""
    across, up = (other for other in range(3) if other != axis)
    edges = np.array([spacing[across], spacing[up]])
    size = next(iter(panels.values())).shape
    return View(
        {title: panel.swapaxes(0, 1) for title, panel in panels.items()},
        (0.0, size[0] * edges[0], 0.0, size[1] * edges[1]),
        {kind: (np.unique(at[:, [across, up]], axis=0) + 0.5) * edges for kind, at in points.items()},
        {title: {index: (at + 0.5) * edges for index, at in _middles(label, axis)} for title, label in labels.items()},
        "nearest",
        seen,
    )


def _middles(label: np.ndarray, axis: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """For each class of a label map, seen along an axis, its place that is nearest to its centre of gravity."""
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        if box is not None:
            places = np.argwhere(label[box] == index) + [side.start for side in box]
            if axis is not None:
                places = np.unique(np.delete(places, axis, axis=1), axis=0)
            yield index, places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]


def _thin_axis(shape: Sequence[int], spacing: Sequence[float]) -> int:
    return int(np.argmin(np.multiply(shape, spacing)))


def _viewpoint(axis: int, affine: np.ndarray | None) -> str:
    if affine is None:
        return f"along axis {axis + 1}"
    return ("from the patient's right", "from the front", "from below")[axis]


def _over(picture: np.ndarray, label: np.ndarray, strength: float = 1.0) -> np.ndarray:
    colours = COLOURS[(label.astype(int) - 1) % len(COLOURS)] / 255
    return np.where(label[..., None] > 0, strength * colours + (1 - strength) * picture, picture)


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
