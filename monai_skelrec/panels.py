"""Step "scores -> report": one case on disk -> small pictures with its faults marked, and words that describe them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import

from .faults import Faults, find_faults
from .label_maps import read_image, voxel_size
from .mask_scores import bounding_box
from .projections import PROJECTION, View, maximum_intensity, view_case, view_slice
from .scores import read_pair

__all__ = [
    "MARKS",
    "Case",
    "Mark",
    "Panel",
    "count_faults",
    "draw_marks",
    "matplotlib_module",
    "picture_case",
    "read_case",
    "read_predictions",
]

pil_image, _ = optional_import("PIL.Image")

_CONTEXT = 0.08  # share of the foreground's extent that is drawn around it
_RED, _WHITE, _BLACK = "#ff2b2b", "#ffffff", "#000000"
_DPI = 100
_MANY = (600, 12)  # points, and rings or squares


@dataclass(frozen=True)
class Mark:
    """How one kind of fault is drawn: its shape tells it apart without colour.

    Attributes:
        name: in a legend, of one.
        shape: matplotlib's marker.
        size: its width in points.
        colour: of the shape.
        rim: around the shape, so that it is seen on every ground.
        line: width of its line in points; 0 for a filled shape.
    """

    name: str
    shape: str
    size: float
    colour: str
    rim: str
    line: float


MARKS = {
    "missed": Mark("missed centreline", "o", 2.6, _RED, _WHITE, 0),
    "false": Mark("false centreline", "x", 3.6, _WHITE, _BLACK, 1.1),
    "breaks": Mark("break", "o", 15, _RED, _WHITE, 1.6),
    "merges": Mark("false merge", "s", 14, _WHITE, _BLACK, 1.6),
}


@dataclass(frozen=True)
class Case:
    """One case as read, cropped to its foreground and some context.

    Attributes:
        image: shape (H, W) and RGB from 0 to 1, or (H, W, D); None where there is none.
        reference: class indices.
        pred: class indices on the same grid.
        faults: of all classes.
        affine: of a volume, None where the format has none.
        spacing: edges of a voxel.
    """

    image: np.ndarray | None
    reference: np.ndarray
    pred: np.ndarray
    faults: Faults
    affine: np.ndarray | None
    spacing: tuple[float, ...]

    @property
    def classes(self) -> list[int]:
        """Indices that occur, background left out."""
        both = np.concatenate([self.pred.ravel(), self.reference.ravel()])
        return (np.flatnonzero(np.bincount(both)[1:]) + 1).tolist()

    @property
    def marks(self) -> dict[str, np.ndarray]:
        """What :py:func:`monai_skelrec.projections.view_case` marks."""
        marks = {"missed": self.faults.missed, "false": self.faults.false}
        for kind in ("breaks", "merges"):
            marks[kind] = np.zeros(self.reference.shape, dtype=bool)
            marks[kind][tuple(getattr(self.faults, kind).T)] = True
        return marks


@dataclass(frozen=True)
class Panel:
    """One picture of a case.

    Attributes:
        title: what it shows.
        alt: what is to be seen, with figures, for who cannot see it.
        png: the picture.
    """

    title: str
    alt: str
    png: bytes


def read_case(
    image_path: str | Path | None,
    reference_path: str | Path,
    prediction_path: str | Path,
    label_values: Sequence[int],
    other_values: str = "error",
    spacing: Sequence[float] | None = None,
    check_grid: bool = True,
) -> Case:
    """Read one case and find its faults; see :py:func:`monai_skelrec.reports.draw_case`.

    Args:
        image_path: scan or picture; None where there is none.
        reference_path: label map on the grid of the image.
        prediction_path: label map on the same grid.
        label_values: value on disk of each class, background first.
        other_values: what a value not listed means: ``"error"``, ``"background"`` or ``"foreground"``.
        spacing: edges of a voxel, for formats that do not hold them.
        check_grid: whether spacing, direction and origin of both label maps must agree; shapes always must.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when a file cannot be read, or image and label maps have different shapes.
    """
    paths = [prediction_path]
    return read_predictions(image_path, reference_path, paths, label_values, other_values, spacing, check_grid)[0]


def read_predictions(
    image_path: str | Path | None,
    reference_path: str | Path,
    prediction_paths: Sequence[str | Path],
    label_values: Sequence[int],
    other_values: str = "error",
    spacing: Sequence[float] | None = None,
    check_grid: bool = True,
) -> list[Case]:
    """Read several predictions of one case, cropped alike: to what is foreground in any of them or in the reference.

    Args as :py:func:`read_case`, with one path or more of predictions. Returns a case for each of them, in their order.
    """
    pairs = [read_pair(path, reference_path, label_values, other_values, check_grid) for path in prediction_paths]
    reference, preds = pairs[0][1], [pred for pred, _ in pairs]
    affine = read_image(reference_path)[1] if image_path is None else None
    image = None
    if image_path is not None:
        image, affine = _read_image(image_path)
        if image.shape[: reference.ndim] != reference.shape:
            raise ValueError(
                f"image and label map must have one shape, got {image.shape} in {image_path} and {reference.shape} "
                f"in {reference_path}."
            )
    if reference.ndim == 3:
        foreground = reference > 0
        for pred in preds:
            foreground |= pred > 0
        box = _with_context(bounding_box(foreground), reference.shape)
        reference, preds, image = reference[box], [pred[box] for pred in preds], None if image is None else image[box]
    if affine is not None:
        spacing = voxel_size(affine)[: reference.ndim]
    edges = (1.0,) * reference.ndim if spacing is None else tuple(spacing)
    return [Case(image, reference, pred, find_faults(pred, reference), affine, edges) for pred in preds]


def picture_case(case: Case, name: str, class_names: Sequence[str], pixels: int = 480) -> list[Panel]:
    """Small pictures of a case: the whole of it, and of a volume the slice where most is wrong.

    Args:
        case: of :py:func:`read_case`.
        name: of the case, for the descriptions.
        class_names: name of each class, background first.
        pixels: longer side of a picture.

    Returns:
        Image, reference and prediction with its faults marked, as PNG in 256 colours; then their slices.

    Raises:
        ImportError: when matplotlib is not installed.
    """
    common: dict[str, Any] = {
        "image": case.image,
        "reference": case.reference,
        "pred": case.pred,
        "marks": case.marks,
        "affine": case.affine,
        "spacing": case.spacing,
    }
    views = [("", view_case(**common, tube=None))]
    if case.reference.ndim == 3:
        views.append(("Slice of ", view_slice(**common)))
    panels = []
    for kind, view in views:
        seen = f", seen {view.seen}" if case.reference.ndim == 3 else ""
        for title, picture in view.panels.items():
            marks = view.marks if title == "Prediction" else {}
            numbers = view.classes["Reference"] if title == "Reference" and len(class_names) > 2 else {}
            heading = "Image, maximum intensity" if title == PROJECTION else kind + (title.lower() if kind else title)
            alt = f"{heading}, case {name}{seen}{_words(title, view, class_names)}."
            panels.append(Panel(heading, alt, _png(picture, view, marks, numbers, pixels)))
    return panels


def count_faults(faults: Faults) -> str:
    """The faults of a case in words."""
    unit = "pixels" if faults.missed.ndim == 2 else "voxels"
    return (
        f"{np.count_nonzero(faults.missed)} of {np.count_nonzero(faults.centerline)} centreline {unit} missed, "
        f"{np.count_nonzero(faults.false)} false; {_number(len(faults.breaks), 'break')}, "
        f"{_number(len(faults.merges), 'false merge')}"
    )


def draw_marks(axes: Any, view: View, beside: Sequence[View] = ()) -> None:
    """Mark the faults of a view on matplotlib axes that show one of its panels.

    Args:
        axes: to draw on.
        view: whose marks are drawn.
        beside: other views of the same picture, which are marked in the same size.
    """
    for kind, mark in MARKS.items():
        points = view.marks[kind]
        # of many marks each is smaller, or nothing else would be seen
        number = sum(len(each.marks[kind]) for each in (view, *beside))
        width = mark.size * (0.6 if number > _MANY[mark.line > 0 and mark.shape != "x"] else 1)
        # first the rims of all marks, then the marks: a row of dots reads as a line with a rim
        for order, (colour, more) in enumerate(((mark.rim, 1.4), (mark.colour, 0.0))):
            size = (width + (0 if mark.line else more)) ** 2
            drawn = {"s": size, "marker": mark.shape, "linewidths": mark.line + more if mark.line else 0}
            drawn |= (
                {"color": colour}
                if mark.shape == "x" or not mark.line
                else {"facecolors": "none", "edgecolors": colour}
            )
            axes.scatter(*points.T, zorder=3 + order, clip_on=True, **drawn)
    axes.set_xlim(*view.extent[:2])
    axes.set_ylim(*view.extent[2:])


def matplotlib_module(name: str) -> Any:
    """A module of matplotlib, which is an extra.

    Raises:
        ImportError: when it is not installed.
    """
    found, installed = optional_import(f"matplotlib.{name}")
    if not installed:
        raise ImportError("pictures need matplotlib: pip install monai_skelrec[report], or set --pictures 0.")
    return found


def _png(
    picture: np.ndarray, view: View, marks: dict[str, np.ndarray], numbers: dict[int, np.ndarray], pixels: int
) -> bytes:
    wide = view.ratio < 1
    width, height = (pixels, max(1, pixels * view.ratio)) if wide else (max(1, pixels / view.ratio), pixels)
    figure = matplotlib_module("figure").Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(picture, extent=view.extent, aspect="auto", origin="lower", interpolation=view.interpolation)
    if marks:
        draw_marks(axes, view)
    rim = matplotlib_module("patheffects").withStroke(linewidth=2.2, foreground=_BLACK)
    for index, place in numbers.items():
        style = {"color": _WHITE, "fontsize": 9, "weight": "bold", "ha": "center", "va": "center"}
        axes.text(*place, str(index), path_effects=[rim], **style)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI, facecolor="black")
    small = io.BytesIO()
    with pil_image.open(drawn) as full:
        # a third of the size, and no eye sees a difference
        full.convert("RGB").quantize(256, dither=pil_image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def _read_image(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """A volume as :py:func:`read_image` gives it; a picture in colour, RGB from 0 to 1."""
    array, affine = read_image(path)
    if array.ndim == 3:
        return array, affine
    if affine is None and array.dtype == np.uint8 and not str(path).endswith(".npy"):
        with pil_image.open(path) as picture:
            return np.asarray(picture.convert("RGB")) / 255, None
    return np.repeat(maximum_intensity(array[None], 0)[..., None], 3, axis=-1), affine


def _with_context(box: tuple[slice, ...], shape: Sequence[int]) -> tuple[slice, ...]:
    """A box with some of its surroundings, or everything where the box is empty."""
    if any(side.stop == 0 for side in box):
        return tuple(slice(0, size) for size in shape)
    margin = max(3, round(_CONTEXT * max(side.stop - side.start for side in box)))
    return tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, size)) for side, size in zip(box, shape, strict=True)
    )


def _words(title: str, view: View, class_names: Sequence[str]) -> str:
    """What is to be seen on a panel."""
    if title not in view.classes:
        return ""
    classes = ": " + (", ".join(class_names[index] for index in view.classes[title]) or "nothing")
    if title != "Prediction":
        return classes
    missed, false, breaks, merges = (len(view.marks[kind]) for kind in MARKS)
    return (
        f"{classes}; marked are {_number(missed, 'point')} of missed centreline, {false} of false centreline, "
        f"{_number(breaks, 'break')} and {_number(merges, 'false merge')}"
    )


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
