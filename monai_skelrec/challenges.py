"""Step "label maps -> scores", as challenges score: one way to call each, and the contents page of their functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .toothfairy import (
    TOOTHFAIRY2_CONVENTIONS,
    TOOTHFAIRY3_CONVENTIONS,
    TOOTHFAIRY_CONVENTIONS,
    aggregate_toothfairy,
    toothfairy2_scores,
    toothfairy3_scores,
    toothfairy_scores,
)
from .topcow import TOPCOW_CONVENTIONS, aggregate_topcow, topcow_scores

__all__ = [
    "CHALLENGES",
    "Challenge",
    "aggregate_toothfairy",
    "aggregate_topcow",
    "toothfairy2_scores",
    "toothfairy3_scores",
    "toothfairy_scores",
    "topcow_scores",
]

Case = dict[str, Any]


@dataclass(frozen=True)
class Challenge:
    """How one challenge scores.

    Attributes:
        score: takes prediction and reference (label maps in stored axis order, in the challenge's values) and the size
            of a voxel along each axis in mm; gives the scores of one case under the challenge's names.
        aggregate: takes what ``score`` gave for every case; gives the statistics under the challenge's names.
        conventions: a sentence for every score, without its full stop; keys are names, or patterns of them for fnmatch.
    """

    score: Callable[[np.ndarray, np.ndarray, Sequence[float]], Case]
    aggregate: Callable[[Sequence[Mapping[str, Any]]], Case]
    conventions: Mapping[str, str]


def _toothfairy2(pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> Case:
    """Voxels of any size score alike."""
    return toothfairy2_scores(pred, reference)


def _toothfairy3(pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> Case:
    """Voxels of any size score alike."""
    return toothfairy3_scores(pred, reference)


CHALLENGES: Mapping[str, Challenge] = {
    "topcow": Challenge(topcow_scores, aggregate_topcow, TOPCOW_CONVENTIONS),
    "toothfairy": Challenge(toothfairy_scores, aggregate_toothfairy, TOOTHFAIRY_CONVENTIONS),
    "toothfairy2": Challenge(_toothfairy2, aggregate_toothfairy, TOOTHFAIRY2_CONVENTIONS),
    "toothfairy3": Challenge(_toothfairy3, aggregate_toothfairy, TOOTHFAIRY3_CONVENTIONS),
}
