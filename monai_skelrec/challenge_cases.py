"""Step "label maps -> scores", what every challenge shares: a checked pair of maps, and statistics over cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .mask_scores import bounding_box
from .skeletons import skeleton

__all__ = ["check_pair", "check_values", "describe_cases", "foreground_box", "plain_centerline_dice"]

_QUARTILES = {"25pc": 25, "50pc": 50, "75pc": 75}


def check_pair(pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None = None) -> None:
    """Refuse what a challenge's own code could not score.

    Raises:
        ValueError: when the maps are not integers in 3D of one shape, or ``spacing`` is not three positive numbers.
    """
    for name, array in (("pred", pred), ("reference", reference)):
        if array.ndim != 3 or array.dtype.kind not in "biu":
            raise ValueError(f"{name} must be a 3D label map of integers, got {array.dtype} of shape {array.shape}.")
    if pred.shape != reference.shape:
        raise ValueError(f"pred and reference must have one shape, got {pred.shape} and {reference.shape}.")
    if spacing is not None and not (len(spacing) == 3 and all(math.isfinite(step) and step > 0 for step in spacing)):
        raise ValueError(f"spacing must be three positive numbers, one an axis, got {spacing}.")


def check_values(pred: np.ndarray, reference: np.ndarray, known: Iterable[int], challenge: str) -> None:
    """Refuse label maps with values that the challenge does not define; 0 is background and always known.

    Raises:
        ValueError: when there are such values; the sentence names them.
    """
    known = [0, *known]
    for name, array in (("pred", pred), ("reference", reference)):
        unknown = np.unique(array[~np.isin(array, known)])
        if unknown.size:
            raise ValueError(
                f"{challenge} scores label maps of the values {sorted(known)}, but {name} holds "
                f"{unknown[:5].tolist()}; map the values first."
            )


def foreground_box(pred: np.ndarray, reference: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds all foreground of two label maps; of size 0 where there is none."""
    return bounding_box((pred != 0) | (reference != 0))


def plain_centerline_dice(pred: np.ndarray, reference: np.ndarray, *, empty: float) -> float:
    """Centreline Dice of two boolean masks, shape (H, W, D), by scikit-image's skeletons as they are.

    Args:
        pred: predicted mask.
        reference: reference mask.
        empty: precision or sensitivity where its skeleton is empty, be it that thinning deleted the whole mask.

    Returns:
        Score in [0, 1], higher is better; 0 where precision and sensitivity are.
    """
    shares = [
        float(other[centerline].mean()) if centerline.any() else float(empty)
        for other, centerline in (
            (reference, skeleton(pred, restore_lost=False)),
            (pred, skeleton(reference, restore_lost=False)),
        )
    ]
    return 2 * shares[0] * shares[1] / sum(shares) if any(shares) else 0.0


def describe_cases(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Summarise each number over the cases that have it, as the challenges' platform does.

    Args:
        cases: scores of one case each; what is not a number is left out, and so is NaN.

    Returns:
        For each key ``mean``, ``std`` (of a sample; NaN for one case), ``min``, ``25pc``, ``50pc``, ``75pc`` (linear
        between cases), ``max`` and ``count``. Without a value all but ``count`` are NaN.

    Raises:
        ValueError: when there are no cases.
    """
    if not cases:
        raise ValueError("there are no cases to aggregate: cases is empty.")
    keys = dict.fromkeys(key for case in cases for key, value in case.items() if isinstance(value, Real))
    return {key: _describe([case[key] for case in cases if key in case]) for key in keys}


def _describe(values: Sequence[float]) -> dict[str, float]:
    known = np.array([value for value in values if not math.isnan(value)], float)
    if not known.size:
        return {**dict.fromkeys(("mean", "std", "min", *_QUARTILES, "max"), math.nan), "count": 0}
    return {
        "mean": float(known.mean()),
        "std": float(known.std(ddof=1)) if known.size > 1 else math.nan,
        "min": float(known.min()),
        **{name: float(np.percentile(known, share)) for name, share in _QUARTILES.items()},
        "max": float(known.max()),
        "count": known.size,
    }
