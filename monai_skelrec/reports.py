"""Step "scores -> report": pictures of scored cases, image beside reference, prediction and tubed skeleton."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import replace
from .panels import MARKS, Case, Mark, count_faults, draw_marks, matplotlib_module, read_case
from .projections import COLOURS, view_case
from .scores import MERGED, Scores, score_indices, score_label_maps
from .skeletons import tubed_skeleton

__all__ = ["draw_case", "draw_cases"]

Groups = str | Sequence[Sequence[int]] | None

_PAPER, _INK, _FAINT = "#14171c", "#f2f4f7", "#aab2bd"
_WIDTH, _DPI = 12.0, 150  # inches; text stays readable at 1200 px
_MARGIN, _GAP, _HEADER, _PANEL_TITLE, _LEGEND_ROW = 0.15, 0.12, 0.78, 0.34, 0.28


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
    matplotlib_module("figure")
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
    """Draw one case as a PNG: image, reference, prediction with its faults marked, and tubed skeleton.

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
    figures = matplotlib_module("figure")
    case = read_case(image_path, reference_path, prediction_path, label_values, other_values, spacing)
    view = view_case(
        image=case.image,
        reference=case.reference,
        pred=case.pred,
        tube=tubed_skeleton(case.reference, radius, groups=groups),
        marks=case.marks,
        affine=case.affine,
        spacing=case.spacing,
    )

    columns = 4 if view.ratio > 0.55 else 2
    width = (_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    height = width * min(view.ratio, 1.7)
    legend = [(class_names[index], tuple(COLOURS[(index - 1) % len(COLOURS)] / 255)) for index in case.classes]
    marks = [mark for kind, mark in MARKS.items() if len(view.marks[kind])]
    legend_rows = _rows_of_legend([*(name for name, _ in legend), *(mark.name for mark in marks)])
    rows = 4 // columns
    total = _HEADER + rows * (_PANEL_TITLE + height) + _LEGEND_ROW * legend_rows + 2 * _MARGIN
    figure = figures.Figure(figsize=(_WIDTH, total), facecolor=_PAPER)
    _write_header(figure, total, Path(output_path).stem, case, class_names)
    for place, (title, picture) in enumerate(view.panels.items()):
        row, column = divmod(place, columns)
        left = _MARGIN + column * (width + _GAP)
        bottom = total - _HEADER - (row + 1) * (_PANEL_TITLE + height)
        axes = figure.add_axes((left / _WIDTH, bottom / total, width / _WIDTH, height / total))
        axes.imshow(picture, extent=view.extent, aspect="equal", origin="lower", interpolation=view.interpolation)
        axes.set_title(title, color=_INK, fontsize=13, pad=6)
        axes.set_axis_off()
        if title == "Prediction":
            draw_marks(axes, view)
    _write_legend(figure, total, legend, marks, legend_rows)

    output_path = Path(output_path)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    replace(output_path, lambda beside: figure.savefig(beside, format="png", dpi=_DPI, facecolor=_PAPER))
    return output_path


def _write_header(figure: Any, total: float, name: str, case: Case, class_names: Sequence[str]) -> None:
    classes = [row for row in score_indices(case.pred, case.reference, class_names) if row["class"] != MERGED]
    figure.text(_MARGIN / _WIDTH, 1 - 0.12 / total, name, color=_INK, fontsize=16, weight="bold", va="top")
    line = "no foreground in reference and prediction"
    if classes:
        mean = {score: np.mean([row[score] for row in classes]) for score in ("dice", "centerline_dice")}
        of = f"mean of {len(classes)} classes: " if len(classes) > 1 else ""
        line = f"{of}Dice {mean['dice']:.3f}, clDice {mean['centerline_dice']:.3f}    {count_faults(case.faults)}"
    figure.text(_MARGIN / _WIDTH, 1 - 0.46 / total, line, color=_FAINT, fontsize=13, va="top")


def _rows_of_legend(names: Sequence[str]) -> int:
    # inches of an entry: mark, space, and about 0.1 a letter
    return int(np.ceil(sum(0.55 + 0.1 * len(name) for name in names) / (_WIDTH - 2 * _MARGIN))) if names else 0


def _write_legend(
    figure: Any, total: float, legend: Sequence[tuple[str, tuple[float, ...]]], marks: Sequence[Mark], rows: int
) -> None:
    if not rows:
        return
    patches, lines = matplotlib_module("patches"), matplotlib_module("lines")
    handles: list[Any] = [patches.Patch(facecolor=colour, label=name) for name, colour in legend]
    for mark in marks:
        style = {"markersize": min(mark.size + 3, 11), "markeredgewidth": mark.line or 0.5, "markeredgecolor": _INK}
        if mark.line:
            style |= {"markerfacecolor": "none", "markeredgecolor": mark.colour}
        else:
            style |= {"color": mark.colour}
        handles.append(lines.Line2D([], [], linestyle="none", label=mark.name, marker=mark.shape, **style))
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
