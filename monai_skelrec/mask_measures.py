"""Step "label map -> scores": every measure of two masks by its name, what several of them need computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .faults import mask_faults
from .mask_scores import mask_betti_errors, mask_centerline_scores, mask_dice, mask_precision_recall
from .measures import MEASURES
from .skeletons import skeleton
from .surface_scores import surface_distances
from .tree_scores import centerline_length, count_joined, radius_error

__all__ = ["MASK_MEASURES", "OF_CAVITIES", "measure_masks"]

_OVERLAP = ("precision", "recall")
_CENTERLINE = ("centerline_dice", "centerline_precision", "centerline_sensitivity")
_BETTI = ("betti0_error", "betti1_error", "betti2_error")
_SURFACE = ("hausdorff95_mm", "surface_distance_mm")
_FAULTS = ("breaks", "false_merges")
_LENGTHS = ("missed_centerline_mm", "false_centerline_mm")
_OF_LINES = (*_CENTERLINE, *_FAULTS, *_LENGTHS, "radius_error_mm", "filled_centerline_dice")
_OF_CASE = ("false_contacts", "side_confusion")  # these look at other classes too

# 2D images have holes only, which are loops
OF_CAVITIES = ("betti2_error", "filled_centerline_dice")
MASK_MEASURES = tuple(name for name in MEASURES if name not in _OF_CASE)


def measure_masks(
    pred: np.ndarray,
    reference: np.ndarray,
    measures: Sequence[str] = MASK_MEASURES,
    spacing: Sequence[float] | None = None,
    absent_distance: float = math.nan,
) -> dict[str, float]:
    """Score two boolean masks, shape HW[D], by any of :py:data:`MASK_MEASURES`; what several need is done once.

    Args:
        pred: prediction.
        reference: reference of the same shape.
        measures: names of :py:data:`monai_skelrec.measures.MEASURES`; those of :py:data:`OF_CAVITIES` are left out in
            2D.
        spacing: edges of a voxel; None for 1.
        absent_distance: HD95 and surface distance where exactly one mask is empty.

    Returns:
        A score for each name, in the order of the vocabulary; NaN each where both masks are empty.
    """
    wanted = set(measures) - (set(OF_CAVITIES) if reference.ndim == 2 else set())
    found: dict[str, float] = {}
    if "dice" in wanted:
        found["dice"] = mask_dice(pred, reference)
    if wanted & {*_OVERLAP}:
        found |= dict(zip(_OVERLAP, mask_precision_recall(pred, reference), strict=True))
    if wanted & {*_BETTI}:
        found |= dict(zip(_BETTI, mask_betti_errors(pred, reference), strict=False))
    if wanted & {*_SURFACE}:
        found |= dict(zip(_SURFACE, surface_distances(pred, reference, spacing, absent_distance), strict=True))
    nothing = not pred.any() and not reference.any()
    if nothing:
        found |= dict.fromkeys(_OF_LINES, math.nan)
    elif wanted & {*_OF_LINES}:
        lines = skeleton(pred), skeleton(reference)
        found |= dict(zip(_CENTERLINE, mask_centerline_scores(pred, reference, lines), strict=True))
        if wanted & {*_FAULTS}:
            faults = mask_faults(pred, reference, lines)
            # a prediction so thick that it swallows two branches has no bridge to point at
            merges = max(len(faults.merges), count_joined(pred, reference))
            found |= dict(zip(_FAULTS, (float(len(faults.breaks)), float(merges)), strict=True))
        if wanted & {*_LENGTHS}:
            lengths = (centerline_length(line, ~mask, spacing) for line, mask in zip(lines[::-1], (pred, reference)))
            found |= dict(zip(_LENGTHS, lengths, strict=True))
        if "radius_error_mm" in wanted:
            found["radius_error_mm"] = radius_error(pred, reference, lines[1], spacing)
        if "filled_centerline_dice" in wanted:
            found["filled_centerline_dice"] = _filled_centerline_dice(pred, reference, lines)
    return {name: found[name] for name in MASK_MEASURES if name in wanted and name in found}


def _filled_centerline_dice(pred: np.ndarray, reference: np.ndarray, lines: tuple[np.ndarray, np.ndarray]) -> float:
    """Centreline Dice without cavities; ``lines`` are the centrelines with them, which most masks have none of."""
    masks = ndimage.binary_fill_holes(pred), ndimage.binary_fill_holes(reference)
    pairs = zip(masks, (pred, reference), lines, strict=True)
    of_pred, of_reference = (line if (full == mask).all() else skeleton(full) for full, mask, line in pairs)
    return mask_centerline_scores(*masks, (of_pred, of_reference))[0]
