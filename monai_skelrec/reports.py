"""Step "scores -> report": pictures of scored cases, image beside reference, prediction and tubed skeleton."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import

from .files import replace
from .label_maps import read_image, voxel_size
from .mask_scores import bounding_box
from .projections import COLOURS, maximum_intensity, view_case
from .scores import MERGED, Scores, read_pair, score_indices, score_label_maps
from .skeletons import skeleton, tubed_skeleton

__all__ = ["draw_case", "draw_cases"]

pil_image, _ = optional_import("PIL.Image")

Groups = str | Sequence[Sequence[int]] | None

_PAPER, _INK, _FAINT, _MISSED = "#14171c", "#f2f4f7", "#aab2bd", "#ff2b2b"
_WIDTH, _DPI = 12.0, 150  # inches; text stays readable at 1200 px
_MARGIN, _GAP, _HEADER, _PANEL_TITLE, _LEGEND_ROW = 0.15, 0.12, 0.78, 0.34, 0.28
_CONTEXT = 0.08  # share of the foreground's extent that is drawn around it


def draw_cases(
    cases: Iterable[Mapping[str, str]],
    predictions_dir: str | Path,
    output_ext: str,
    class_names: Sequence[str],
    label_values: Sequence[int],
    other_values: str,
    output_dir: str | Path,
    limit: int = 3,
    scores: Scores | None = None,
    radius: float = 2,
    groups: Groups = None,
    spacing: Sequence[float] | None = None,
) -> list[Path]:
    """Draw the cases with the worst class-average centreline Dice, worst first; see :py:func:`draw_case`.

    Args:
        cases: dictionaries with ``name``, ``image`` and ``label`` (paths).
        predictions_dir: holds the predictions, ``<name><output_ext>``.
        output_ext: ending of the predictions' names, such as ``".nii.gz"``.
        class_names: name of each class, background first.
        label_values: value on disk of each class, as ``class_names``.
        other_values: what a value not listed means: ``"error"``, ``"background"`` or ``"foreground"``.
        output_dir: gets ``<name>.png`` of each case drawn, and the tables when the cases are scored here.
        limit: how many cases are drawn; 0 for none.
        scores: of :py:func:`monai_skelrec.scores.score_label_maps` for these cases; scored here when None.
        radius: see :py:func:`monai_skelrec.tubed_skeleton`.
        groups: see :py:func:`monai_skelrec.tubed_skeleton`.
        spacing: edges of a voxel, for formats that do not hold them.

    Returns:
        Paths of the pictures. A case without any score, because it failed or shows nothing, is not drawn.

    Raises:
        ImportError: when matplotlib is not installed.
    """
    if limit < 1:
        return []
    _matplotlib("figure")
    by_name = {case["name"]: case for case in cases}
    output_dir = Path(output_dir)
    if scores is None:
        scores = score_label_maps(
            by_name.values(), predictions_dir, output_ext, class_names, label_values, other_values, output_dir
        )
    by_case: dict[str, list[float]] = {}
    for row in scores.rows:
        if row["class"] != MERGED:
            by_case.setdefault(row["case"], []).append(row["centerline_dice"])
    worst = sorted((name for name in by_case if name in by_name), key=lambda name: float(np.mean(by_case[name])))
    return [
        draw_case(
            by_name[name]["image"],
            by_name[name]["label"],
            Path(predictions_dir) / f"{name}{output_ext}",
            output_dir / f"{name}.png",
            class_names,
            label_values,
            other_values=other_values,
            radius=radius,
            groups=groups,
            spacing=spacing,
        )
        for name in worst[:limit]
    ]


def draw_case(
    image_path: str | Path,
    reference_path: str | Path,
    prediction_path: str | Path,
    output_path: str | Path,
    class_names: Sequence[str],
    label_values: Sequence[int],
    *,
    other_values: str = "error",
    radius: float = 2,
    groups: Groups = None,
    spacing: Sequence[float] | None = None,
) -> Path:
    """Draw one case as a PNG: image, reference, prediction with the centreline it missed, and tubed skeleton.

    Volumes are cropped to the foreground and seen along the axis in which that extends least: the image as
    maximum-intensity projection, the label maps as solids. Where the file says how the patient lay, the picture is
    upright, the patient's right on its left.

    Args:
        image_path: scan or picture.
        reference_path: reference label map on the grid of the image.
        prediction_path: predicted label map on the same grid.
        output_path: the PNG to write; its name without ending is the title.
        class_names: name of each class, background first.
        label_values: value on disk of each class, as ``class_names``.
        other_values: what a value not listed means: ``"error"``, ``"background"`` or ``"foreground"``.
        radius: see :py:func:`monai_skelrec.tubed_skeleton`; in voxels.
        groups: see :py:func:`monai_skelrec.tubed_skeleton`; in class indices.
        spacing: edges of a voxel, for formats that do not hold them.

    Returns:
        ``output_path``.

    Raises:
        ImportError: when matplotlib is not installed.
        FileNotFoundError: when a file is missing.
        ValueError: when a file cannot be read, or image and label maps have different shapes.
    """
    figures = _matplotlib("figure")
    pred, reference = read_pair(prediction_path, reference_path, label_values, other_values)
    image, affine = _read_image(image_path)
    if image.shape[: reference.ndim] != reference.shape:
        raise ValueError(
            f"image and label map must have one shape, got {image.shape} in {image_path} and {reference.shape} in "
            f"{reference_path}."
        )
    if reference.ndim == 3:
        box = _with_context(bounding_box(np.maximum(reference, pred)), reference.shape)
        image, pred, reference = image[box], pred[box], reference[box]
    indices = (np.flatnonzero(np.bincount(np.concatenate([pred.ravel(), reference.ravel()]))[1:]) + 1).tolist()
    centerline, missed = _missed_centerline(pred, reference)
    if affine is not None:
        spacing = voxel_size(affine)
    view = view_case(
        image=image,
        reference=reference,
        pred=pred,
        tube=tubed_skeleton(reference, radius, groups=groups),
        missed=missed,
        affine=affine,
        spacing=(1.0,) * reference.ndim if spacing is None else tuple(spacing),
    )

    columns = 4 if view.ratio > 0.55 else 2
    width = (_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    height = width * min(view.ratio, 1.7)
    legend = [(class_names[index], tuple(COLOURS[(index - 1) % len(COLOURS)] / 255)) for index in indices]
    legend_rows = _rows_of_legend([name for name, _ in legend])
    rows = 4 // columns
    total = _HEADER + rows * (_PANEL_TITLE + height) + _LEGEND_ROW * legend_rows + 2 * _MARGIN
    figure = figures.Figure(figsize=(_WIDTH, total), facecolor=_PAPER)
    _write_header(
        figure, total, Path(output_path).stem, score_indices(pred, reference, class_names), missed, centerline
    )
    for place, (title, picture) in enumerate(view.panels.items()):
        row, column = divmod(place, columns)
        left = _MARGIN + column * (width + _GAP)
        bottom = total - _HEADER - (row + 1) * (_PANEL_TITLE + height)
        axes = figure.add_axes((left / _WIDTH, bottom / total, width / _WIDTH, height / total))
        axes.imshow(picture, extent=view.extent, aspect="equal", origin="lower", interpolation=view.interpolation)
        axes.set_title(title, color=_INK, fontsize=13, pad=6)
        axes.set_axis_off()
        if title == "Prediction":
            # first the white of all dots, then their red: a row of dots reads as a red line with a white rim
            axes.scatter(*view.missed.T, s=13, color="white", linewidths=0, zorder=3)
            axes.scatter(*view.missed.T, s=6, color=_MISSED, linewidths=0, zorder=4)
            axes.set_xlim(*view.extent[:2])
            axes.set_ylim(*view.extent[2:])
    _write_legend(figure, total, legend, legend_rows)

    output_path = Path(output_path)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    replace(output_path, lambda beside: figure.savefig(beside, format="png", dpi=_DPI, facecolor=_PAPER))
    return output_path


def _missed_centerline(pred: np.ndarray, reference: np.ndarray) -> tuple[int, np.ndarray]:
    """How long the centrelines of all classes of the reference are, in voxels, and where the prediction misses them."""
    length, missed = 0, np.zeros(reference.shape, dtype=bool)
    for index in np.unique(reference[reference > 0]):
        mask = reference == index
        box = bounding_box(mask)
        centerline = skeleton(mask[box])
        length += int(np.count_nonzero(centerline))
        missed[box] |= centerline & (pred[box] != index)
    return length, missed


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


def _write_header(
    figure: Any, total: float, name: str, rows: Sequence[Mapping[str, Any]], missed: np.ndarray, centerline: int
) -> None:
    classes = [row for row in rows if row["class"] != MERGED]
    figure.text(_MARGIN / _WIDTH, 1 - 0.12 / total, name, color=_INK, fontsize=16, weight="bold", va="top")
    line = "no foreground in reference and prediction"
    if classes:
        mean = {score: np.mean([row[score] for row in classes]) for score in classes[0] if score != "class"}
        line = "    ".join(
            [
                *([f"Mean of {len(classes)} classes:"] if len(classes) > 1 else []),
                f"Dice {mean['dice']:.3f}",
                f"clDice {mean['centerline_dice']:.3f}",
                f"β0 error {mean['betti0_error']:.2f}",
                f"β1 error {mean['betti1_error']:.2f}",
                f"missed centreline: {np.count_nonzero(missed)} of {centerline} "
                f"{'pixels' if missed.ndim == 2 else 'voxels'}",
            ]
        )
    figure.text(_MARGIN / _WIDTH, 1 - 0.46 / total, line, color=_FAINT, fontsize=13, va="top")


def _rows_of_legend(names: Sequence[str]) -> int:
    # inches of an entry: mark, space, and about 0.1 a letter
    return int(np.ceil((sum(0.55 + 0.1 * len(name) for name in names) + 2.3) / (_WIDTH - 2 * _MARGIN)))


def _write_legend(figure: Any, total: float, legend: Sequence[tuple[str, tuple[float, ...]]], rows: int) -> None:
    patches, lines = _matplotlib("patches"), _matplotlib("lines")
    handles: list[Any] = [patches.Patch(facecolor=colour, label=name) for name, colour in legend]
    dot = {"marker": "o", "markersize": 5, "color": _MISSED, "markeredgecolor": "white", "markeredgewidth": 0.5}
    handles.append(lines.Line2D([], [], linestyle="none", label="missed centreline", **dot))
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.06 / total),
        ncols=int(np.ceil(len(handles) / rows)),
        frameon=False,
        labelcolor=_INK,
        fontsize=12,
        handlelength=1.0,
        handleheight=0.9,
        handletextpad=0.5,
        columnspacing=1.4,
        borderaxespad=0.0,
    )


def _matplotlib(module: str) -> Any:
    found, installed = optional_import(f"matplotlib.{module}")
    if not installed:
        raise ImportError("pictures need matplotlib: pip install monai_skelrec[report], or evaluate with --pictures 0.")
    return found
