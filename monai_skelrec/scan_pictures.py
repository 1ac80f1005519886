"""Step "label map -> picture" for new scans: the scan as maximum projection, and beside it what was found in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .files import replace
from .grids import voxel_size
from .panels import matplotlib_module
from .projections import COLOURS, colour_classes, maximum_intensity, turn_upright

__all__ = ["draw_scan", "project_scan"]

_WIDTH, _DPI = 10.0, 120  # inches
_PAPER, _INK = "#14171c", "#f2f4f7"
_DIM = 0.35


def draw_scan(
    path: str | Path, image: np.ndarray, label: np.ndarray, class_names: Sequence[str], affine: np.ndarray
) -> None:
    """Draw one scan and its label map as a PNG with the names of the classes found.

    Args:
        path: the PNG; replaced at once or not at all.
        image: shape (C, W, H) or (C, W, H, D), any unit. A picture of three channels is drawn in colour.
        label: class indices, shape (W, H) or (W, H, D).
        class_names: background first.
        affine: of a volume, from indices to RAS+ millimetres.

    Raises:
        ImportError: when matplotlib is not installed.
        ValueError: when image and label map do not fit.
    """
    figures, patches = matplotlib_module("figure"), matplotlib_module("patches")
    left, right, ratio = project_scan(image, label, affine)
    found = (np.flatnonzero(np.bincount(label.ravel())[1:]) + 1).tolist()
    rows = -(-len(found) // 7)
    side = _WIDTH / 2
    height = side * min(ratio, 2.0)
    total = height + 0.45 + 0.3 * rows
    figure = figures.Figure(figsize=(_WIDTH, total), facecolor=_PAPER)
    for place, picture in enumerate((left, right)):
        axes = figure.add_axes((place / 2 + 0.005, (total - 0.4 - height) / total, 0.49, height / total))
        axes.imshow(picture, origin="lower", aspect="auto", interpolation="nearest", extent=(0, 1, 0, ratio))
        axes.set_aspect("equal")
        axes.set_axis_off()
    figure.text(0.01, 1 - 0.1 / total, Path(path).stem, color=_INK, fontsize=13, va="top")
    if found:
        handles = [
            patches.Patch(facecolor=tuple(COLOURS[(index - 1) % len(COLOURS)] / 255), label=class_names[index])
            for index in found
        ]
        figure.legend(handles=handles, loc="lower center", ncols=7, frameon=False, labelcolor=_INK, fontsize=10)
    path = Path(path)
    replace(path, lambda beside: figure.savefig(beside, format="png", dpi=_DPI, facecolor=_PAPER))


def project_scan(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """See a scan and its label map along the axis in which the scan extends least; see :py:func:`draw_scan`.

    Returns:
        RGB from 0 to 1 of the scan and of the classes over the dimmed scan, rows from the bottom up, and the ratio of
        height to width in space. Volumes are upright, the patient's right on the left.
    """
    if image.shape[1:] != label.shape:
        raise ValueError(f"image and label map must have one grid, got shapes {image.shape} and {label.shape}.")
    if label.ndim == 2:
        grey = maximum_intensity(image[None, 0], 0)[..., None].repeat(3, axis=-1)
        seen = np.clip(image[:3].transpose(1, 2, 0) / max(float(image.max()), 1e-6), 0, 1) if len(image) == 3 else grey
        colours = np.vstack([[0, 0, 0], COLOURS])[np.where(label > 0, (label.astype(int) - 1) % len(COLOURS) + 1, 0)]
        over = np.where(label[..., None] > 0, colours / 255, _DIM * seen)
        # the second index counts rows from the top
        left, right = (picture.swapaxes(0, 1)[::-1] for picture in (seen, over))
        return left, right, label.shape[1] / label.shape[0]
    volume, classes = turn_upright(image[0], affine), turn_upright(label, affine)
    # edges of a voxel in the order of the turned axes
    along = np.argmax(np.abs(affine[:3, :3]) / np.asarray(voxel_size(affine)), axis=0)
    spacing = [float(voxel_size(affine)[axis]) for axis in np.argsort(along)]
    axis = int(np.argmin(np.multiply(volume.shape, spacing)))
    across, up = (other for other in range(3) if other != axis)
    grey = maximum_intensity(volume, axis)[..., None].repeat(3, axis=-1)
    over = colour_classes(classes, axis, spacing, _DIM * grey)
    ratio = volume.shape[up] * spacing[up] / (volume.shape[across] * spacing[across])
    return grey.swapaxes(0, 1), over.swapaxes(0, 1), float(ratio)
