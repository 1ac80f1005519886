"""Step "scores -> report": pictures of scored cases, image beside reference, prediction and tubed skeleton."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .panels import Case, count_faults, matplotlib_module, read_case
from .picture_sheets import Tile, draw_sheet
from .projections import view_case
from .scores import MERGED, Scores, score_indices, score_label_maps
from .skeletons import tubed_skeleton

__all__ = ["draw_case", "draw_cases"]

Groups = str | Sequence[Sequence[int]] | None


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
    matplotlib_module("figure")
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
    tiles = [Tile(title, title, view) for title in view.panels]
    names = {index: class_names[index] for index in case.classes}
    return draw_sheet(output_path, Path(output_path).stem, _line(case, class_names), tiles, names)


def _line(case: Case, class_names: Sequence[str]) -> str:
    """Scores and faults of a case in words."""
    classes = [row for row in score_indices(case.pred, case.reference, class_names) if row["class"] != MERGED]
    if not classes:
        return "no foreground in reference and prediction"
    mean = {score: np.mean([row[score] for row in classes]) for score in ("dice", "centerline_dice")}
    of = f"mean of {len(classes)} classes: " if len(classes) > 1 else ""
    return f"{of}Dice {mean['dice']:.3f}, clDice {mean['centerline_dice']:.3f}    {count_faults(case.faults)}"
