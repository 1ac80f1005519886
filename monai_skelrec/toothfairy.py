"""Step "label maps -> scores", as the ToothFairy challenges score: their numbers under their own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .challenge_cases import check_pair, check_values, describe_cases, foreground_box, plain_centerline_dice
from .mask_scores import compute_betti_numbers, mask_dice, score_classes
from .surface_distances import distances_both_ways, surface

__all__ = [
    "TOOTHFAIRY2_CONVENTIONS",
    "TOOTHFAIRY3_CONVENTIONS",
    "TOOTHFAIRY_CONVENTIONS",
    "aggregate_toothfairy",
    "toothfairy2_scores",
    "toothfairy3_scores",
    "toothfairy_scores",
]

# what ITK's distance map, in single precision, holds where there is no surface to measure from
_DISTANCE_TO_NOTHING = float(np.sqrt(np.finfo(np.float32).max))

_BONES_AND_MORE = {
    1: "Lower Jawbone",
    2: "Upper Jawbone",
    3: "Left Inferior Alveolar Canal",
    4: "Right Inferior Alveolar Canal",
    5: "Left Maxillary Sinus",
    6: "Right Maxillary Sinus",
    7: "Pharynx",
    8: "Bridge",
    9: "Crown",
    10: "Implant",
}
_QUADRANTS = {10: "Upper Right", 20: "Upper Left", 30: "Lower Left", 40: "Lower Right"}
_TEETH = (
    "Central Incisor",
    "Lateral Incisor",
    "Canine",
    "First Premolar",
    "Second Premolar",
    "First Molar",
    "Second Molar",
    "Third Molar (Wisdom Tooth)",
)
_TOOTHFAIRY2 = _BONES_AND_MORE | {
    tens + ones: f"{quadrant} {tooth}" for tens, quadrant in _QUADRANTS.items() for ones, tooth in enumerate(_TEETH, 1)
}
_PULP = 150
_TOOTHFAIRY3 = _TOOTHFAIRY2 | {
    103: "Left Mandibular Incisive Canal",
    104: "Right Mandibular Incisive Canal",
    105: "Lingual Canal",
    _PULP: "Pulp",
}
# the pulp of tooth 11 is 111, and so on
_PULPS = [100 + tens + ones for tens in _QUADRANTS for ones in range(1, 9)]

# patterns of names, as fnmatch reads them
TOOTHFAIRY_CONVENTIONS = {
    "DiceCoefficient": (
        "twice the overlap by the sum of sizes; left out where both masks are empty (originally infinite)"
    ),
    "HausdorffDistance95": (
        "95th percentile of the distances between surfaces of both directions pooled, in mm; a surface voxel has "
        "background among its 26 neighbours, and none at the edge of the image; 1.8e19 where one mask has no surface; "
        "left out where neither has one (originally an error)"
    ),
    "clDice": (
        "by scikit-image's skeleton on the array in order z, y, x without restored centrelines; the term of an empty "
        "skeleton is 1; 0 where both terms are 0"
    ),
    "Betti_0": "|prediction - reference| of the number of components, 26-connected",
    "Betti_1": "|prediction - reference| of the number of loops, foreground 26-connected, background 6-connected",
}

TOOTHFAIRY2_CONVENTIONS = {
    "Dice *": "twice the overlap by the sum of sizes; 1 where a label is in neither map",
    "HD95 *": (
        "95th percentile of the distances between surfaces of both directions pooled, in voxels whatever their size; a "
        "surface voxel has background across one of its faces; 0 where a label is in neither map, the diagonal of the "
        "image in voxels where it is in one only"
    ),
    "DiceCoefficient": "mean of Dice over all 42 labels, those in neither map included",
    "HausdorffDistance95": "mean of HD95 over all 42 labels, those in neither map included",
}

TOOTHFAIRY3_CONVENTIONS = {
    "pulp": "the pulps of all teeth (111 to 148) are one label, 150",
    "Dice *": TOOTHFAIRY2_CONVENTIONS["Dice *"],
    "HD95 *": TOOTHFAIRY2_CONVENTIONS["HD95 *"],
    "Dice Average": "mean of Dice over all 46 labels, those in neither map included",
    "HD95 Average": "mean of HD95 over all 46 labels, those in neither map included",
}


def toothfairy_scores(
    pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float], axes: str = "xyz"
) -> dict[str, float]:
    """Score one case as ToothFairy 1 (2023) scores the inferior alveolar canal.

    Number for number what the organisers' code gives; distances agree to single precision, in which that code computes
    them. Where it divides by nothing or fails, both masks being without voxels or surface, the score is NaN.
    :py:data:`TOOTHFAIRY_CONVENTIONS` says how every score is defined.

    Args:
        pred: predicted mask, integers 0 and 1 or booleans, shape (H, W, D).
        reference: as ``pred``, on the same grid.
        spacing: size of a voxel along each axis of the arrays, in mm.
        axes: ``"xyz"`` for arrays as NIfTI stores them, ``"zyx"`` for the challenge's own NumPy volumes. Thinning
            depends on the order, and the challenge's is z, y, x.

    Returns:
        ``DiceCoefficient``, ``HausdorffDistance95``, ``clDice``, ``Betti_0`` and ``Betti_1``.

    Raises:
        ValueError: when the masks are not integers in 3D of one shape and of the values 0 and 1, ``spacing`` is not
            three positive numbers, or ``axes`` is something else.
    """
    check_pair(pred, reference, spacing)
    if axes not in ("xyz", "zyx"):
        raise ValueError(f'axes must be "xyz" or "zyx", got {axes!r}.')
    if axes == "xyz":
        pred, reference, spacing = pred.T, reference.T, tuple(spacing)[::-1]
    # one voxel of margin, where the image has it, tells a surface from a mask that is cut off by the edge of the image
    box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in foreground_box(pred, reference))
    pred, reference = pred[box], reference[box]
    check_values(pred, reference, [1], "ToothFairy 1")
    pred, reference = pred.astype(bool), reference.astype(bool)
    numbers = zip(compute_betti_numbers(pred), compute_betti_numbers(reference), strict=True)
    components, loops, _ = (abs(a - b) for a, b in numbers)
    return {
        "DiceCoefficient": mask_dice(pred, reference),
        "HausdorffDistance95": _hausdorff95_mm(pred, reference, spacing),
        "clDice": plain_centerline_dice(pred, reference, empty=1),
        "Betti_0": components,
        "Betti_1": loops,
    }


def toothfairy2_scores(pred: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Score one case as ToothFairy 2 (2024) scores its 42 labels.

    Number for number what the organisers' code gives. :py:data:`TOOTHFAIRY2_CONVENTIONS` says how every score is
    defined; the voxel size plays no part.

    Args:
        pred: predicted label map, integers, shape (H, W, D), in the challenge's values; others are background.
        reference: as ``pred``, on the same grid.

    Returns:
        ``DiceCoefficient`` and ``HausdorffDistance95``, the averages, then ``Dice <label>`` and ``HD95 <label>`` of
        every label.

    Raises:
        ValueError: when the maps are not integers in 3D of one shape.
    """
    check_pair(pred, reference)
    dice, hd95, by_label = _score_labels(pred, reference, _TOOTHFAIRY2)
    return {"DiceCoefficient": dice, "HausdorffDistance95": hd95, **by_label}


def toothfairy3_scores(pred: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Score one case as ToothFairy 3 (2025) scores its 46 labels; otherwise as :py:func:`toothfairy2_scores`.

    Returns:
        ``Dice Average`` and ``HD95 Average``, then ``Dice <label>`` and ``HD95 <label>`` of every label, from which the
        organisers average but which they do not hand out.
    """
    check_pair(pred, reference)
    dice, hd95, by_label = _score_labels(_join_pulps(pred), _join_pulps(reference), _TOOTHFAIRY3)
    return {"Dice Average": dice, "HD95 Average": hd95, **by_label}


def aggregate_toothfairy(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Aggregate scores of any of the three challenges over cases as the organisers do.

    Returns:
        For each score its statistics; see :py:func:`monai_skelrec.challenge_cases.describe_cases`.

    Raises:
        ValueError: when there are no cases.
    """
    return describe_cases(cases)


def _join_pulps(label_map: np.ndarray) -> np.ndarray:
    return np.where(np.isin(label_map, _PULPS), _PULP, label_map)


def _hausdorff95_mm(pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    found, expected = (surface(mask, connectivity=3, edge=False) for mask in (pred, reference))
    if not found.any() or not expected.any():
        return _DISTANCE_TO_NOTHING if found.any() or expected.any() else float("nan")
    return float(np.percentile(np.concatenate(distances_both_ways(found, expected, spacing)), 95))


def _hausdorff95_voxels(pred: np.ndarray, reference: np.ndarray, absent: float) -> float:
    if not pred.any() or not reference.any():
        return absent if pred.any() or reference.any() else 0.0
    found, expected = (surface(mask, connectivity=1, edge=True) for mask in (pred, reference))
    return float(np.percentile(np.concatenate(distances_both_ways(found, expected)), 95))


def _score_labels(
    pred: np.ndarray, reference: np.ndarray, labels: Mapping[int, str]
) -> tuple[float, float, dict[str, float]]:
    """Average Dice, average HD95, and both of every label."""
    # an axis of one voxel is no axis to the organisers, so a single slice is scored as a picture
    pred, reference = pred.squeeze(), reference.squeeze()
    score = partial(_score_label, absent=float(np.linalg.norm(pred.shape)))
    found = score_classes(score, pred[np.newaxis], reference[np.newaxis], list(labels))
    by_label: dict[str, float] = {}
    for name, (dice, hd95) in zip(labels.values(), found, strict=True):
        by_label |= {f"Dice {name}": dice, f"HD95 {name}": hd95}
    mean_dice, mean_hd95 = (sum(column) / len(labels) for column in zip(*found, strict=True))
    return mean_dice, mean_hd95, by_label


def _score_label(pred: np.ndarray, reference: np.ndarray, absent: float) -> tuple[float, float]:
    dice = mask_dice(pred, reference) if pred.any() or reference.any() else 1.0
    return dice, _hausdorff95_voxels(pred, reference, absent)
