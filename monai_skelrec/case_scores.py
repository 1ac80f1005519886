"""Step "label map -> scores": all measures of all classes of one case, and of its merged foreground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .label_maps import to_class_indices
from .mask_measures import measure_masks
from .mask_scores import bounding_box, score_classes
from .measures import MEASURES
from .sides import side_pairs
from .skeletons import skeleton
from .surface_scores import diagonal
from .tree_scores import label_contacts, side_confusion

__all__ = ["MERGED", "check_classes", "check_measures", "score_case", "score_indices"]

Row = dict[str, Any]

MERGED = "merged foreground"


def score_case(
    pred: np.ndarray,
    reference: np.ndarray,
    class_names: Sequence[str],
    label_values: Sequence[int],
    other_values: str = "error",
    spacing: Sequence[float] | None = None,
    measures: Sequence[str] | None = None,
) -> list[Row]:
    """Score one label map: a row a class that is in either map, then one for all foreground as one mask.

    Args:
        pred: predicted label map, integers, shape (H, W) or (H, W, D), in ``label_values``.
        reference: reference label map on the same grid.
        class_names: name of each class, background first.
        label_values: value of each class in the arrays, as ``class_names``.
        other_values: what a value not listed means: ``"error"``, ``"background"`` or ``"foreground"``.
        spacing: edges of a voxel in mm, one an axis; None for 1.
        measures: names of :py:data:`monai_skelrec.measures.MEASURES`; None for all.

    Returns:
        Rows with ``class`` and the measures, in the order of the vocabulary, which says what each of them means. A
        class in one map only is penalised as it says there (Dice and centreline Dice 0, the other's Betti numbers as
        errors, distances as long as the diagonal of the arrays). NaN is what does not exist: any measure where there is
        no foreground at all, the radius error without a common centreline, the other side of a class that has none.
        What is about cavities is left out in 2D, ``side_confusion`` where no class has another side.

    Raises:
        ValueError: when the shapes differ or are not 2D or 3D, a value or a measure is unknown, or ``class_names``,
            ``label_values`` or ``spacing`` do not fit.
    """
    check_classes(class_names, label_values)
    if pred.shape != reference.shape or pred.ndim not in (2, 3):
        raise ValueError(f"pred and reference must be 2D or 3D of one shape, got {pred.shape} and {reference.shape}.")
    pred, reference = (to_class_indices(array, label_values, other_values) for array in (pred, reference))
    return score_indices(pred, reference, class_names, spacing, measures)


def score_indices(
    pred: np.ndarray,
    reference: np.ndarray,
    class_names: Sequence[str],
    spacing: Sequence[float] | None = None,
    measures: Sequence[str] | None = None,
) -> list[Row]:
    """As :py:func:`score_case`, of maps that hold class indices already."""
    wanted = check_measures(measures)
    if spacing is not None and (len(spacing) != pred.ndim or not all(edge > 0 for edge in spacing)):
        raise ValueError(f"spacing must have {pred.ndim} positive values, one an axis, got {list(spacing)}.")
    absent_distance = diagonal(pred.shape, spacing)
    # everything below costs what the foreground costs, and no score depends on the background around it
    box = bounding_box(np.maximum(pred, reference))
    pred, reference = np.ascontiguousarray(pred[box])[None], np.ascontiguousarray(reference[box])[None]
    voxels = np.bincount(pred.ravel(), minlength=len(class_names))
    voxels += np.bincount(reference.ravel(), minlength=len(class_names))
    present = (np.flatnonzero(voxels[1:]) + 1).tolist()

    def measure(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
        return measure_masks(one, other, wanted, spacing, absent_distance)

    of_classes = score_classes(measure, pred, reference, present)
    rows = [dict(zip(present, of_classes, strict=True)), {0: measure(pred[0] > 0, reference[0] > 0)}]
    if "false_contacts" in wanted:
        rows = _with(rows, "false_contacts", _false_contacts(pred[0], reference[0], present))
    partners = side_pairs(class_names)
    if "side_confusion" in wanted and partners:
        rows = _with(rows, "side_confusion", _confused(pred, reference, present, partners))
    classes, merged = rows
    ordered = [name for name in MEASURES if name in merged[0]]
    return [
        *({"class": class_names[index], **{name: row[name] for name in ordered}} for index, row in classes.items()),
        {"class": MERGED, **{name: merged[0][name] for name in ordered}},
    ]


def check_classes(class_names: Sequence[str], label_values: Sequence[int]) -> None:
    """Refuse names and values of classes that do not fit each other."""
    if len(class_names) != len(label_values) or len(class_names) < 2 or len(set(label_values)) < len(label_values):
        raise ValueError(
            "class_names and label_values must name background and at least one class, each with a value of its own, "
            f"got {len(class_names)} names and values {list(label_values)}."
        )


def check_measures(measures: Sequence[str] | None) -> tuple[str, ...]:
    """Names of measures in the order of the vocabulary, all where None; refuse others."""
    unknown = [name for name in measures or () if name not in MEASURES]
    if unknown or (measures is not None and not measures):
        raise ValueError(f"measures must be some of {', '.join(MEASURES)}, got {', '.join(unknown) or 'none'}.")
    return tuple(name for name in MEASURES if measures is None or name in measures)


def _with(rows: list[dict[int, Row]], name: str, values: dict[int, float]) -> list[dict[int, Row]]:
    return [{index: {**row, name: values.get(index, math.nan)} for index, row in of_kind.items()} for of_kind in rows]


def _false_contacts(pred: np.ndarray, reference: np.ndarray, present: Sequence[int]) -> dict[int, float]:
    """How many other classes each class touches in the prediction only."""
    new = label_contacts(pred) - label_contacts(reference)
    return {index: float(sum(index in pair for pair in new)) for index in present}


def _confused(
    pred: np.ndarray, reference: np.ndarray, present: Sequence[int], partners: dict[int, int]
) -> dict[int, float]:
    confused = {}
    for index in set(present) & set(partners):
        mask = reference[0] == index
        box = bounding_box(mask)
        confused[index] = side_confusion(pred[0][box] == partners[index], skeleton(mask[box]))
    return confused
