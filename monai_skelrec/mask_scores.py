"""Step "label map -> scores", the mathematics: centreline Dice and Betti numbers of boolean masks, exact.

Nothing here knows about batches, tensors or files. Foreground is 8-connected in 2D and 26-connected in 3D, background
4- and 6-connected, and outside the array is background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage

from .skeletons import skeleton

__all__ = [
    "bounding_box",
    "compute_betti_numbers",
    "mask_betti_errors",
    "mask_centerline_dice",
    "mask_centerline_scores",
    "mask_dice",
    "mask_precision_recall",
    "score_classes",
]

Box = tuple[slice, ...]
Score = TypeVar("Score")

# below this many voxels a thread costs more than it saves
_VOXELS_WORTH_THREADS = 2**15


def compute_betti_numbers(mask: np.ndarray) -> tuple[int, ...]:
    """Count the components, loops and cavities of one mask, exactly.

    With :math:`b_0` the components of the foreground, :math:`b_2` the components of the background less the outside,
    and :math:`\\chi` the Euler characteristic, :math:`b_1 = b_0 + b_2 - \\chi` in 3D; in 2D :math:`b_1` is the
    components of the background less the outside.

    Args:
        mask: boolean (or 0 and 1), shape HW[D].

    Returns:
        ``(b0, b1)`` in 2D: components and holes. ``(b0, b1, b2)`` in 3D: components, loops (tunnels), cavities.

    Raises:
        ValueError: when ``mask`` is neither 2D nor 3D, or holds values other than 0 and 1.

    Example:
        >>> compute_betti_numbers(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]))
        (1, 1)
    """
    mask = np.asarray(mask)
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask must be 2D or 3D, got shape {mask.shape}.")
    if mask.dtype != bool:
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                f"mask must hold 0 and 1 only, got values up to {mask.max()}; compare with one class first."
            )
        mask = mask.astype(bool)
    # the border of background joins what surrounds the object and lets the object touch the edge of the array
    mask = np.pad(mask[bounding_box(mask)], 1)
    components = ndimage.label(mask, np.ones((3,) * mask.ndim))[1]
    enclosed = ndimage.label(~mask)[1] - 1
    if mask.ndim == 2:
        return components, enclosed
    return components, components + enclosed - _euler_characteristic(mask), enclosed


def mask_betti_errors(pred: np.ndarray, reference: np.ndarray) -> tuple[float, ...]:
    """Absolute difference of each Betti number of two boolean masks, shape HW[D]; lower is better.

    Returns:
        One value a dimension, as :py:func:`compute_betti_numbers` orders them; NaN where both masks are empty.
    """
    if not pred.any() and not reference.any():
        return (float("nan"),) * reference.ndim
    pairs = zip(compute_betti_numbers(pred), compute_betti_numbers(reference), strict=True)
    return tuple(float(abs(a - b)) for a, b in pairs)


def mask_dice(pred: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two boolean masks, shape HW[D]: twice the overlap by the sum of sizes.

    Returns:
        Score in [0, 1], higher is better; NaN where both masks are empty, 0 where one is.
    """
    total = np.count_nonzero(pred) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(pred & reference) / total) if total else float("nan")


def mask_precision_recall(pred: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """How much of the prediction lies in the reference, and of the reference in the prediction; masks, shape HW[D].

    Returns:
        Shares in [0, 1], higher is better; NaN where both masks are empty, 0 where one is.
    """
    if not pred.any() and not reference.any():
        return float("nan"), float("nan")
    common = int(np.count_nonzero(pred & reference))
    precision, recall = (common / max(1, int(np.count_nonzero(mask))) for mask in (pred, reference))
    return precision, recall


def mask_centerline_dice(pred: np.ndarray, reference: np.ndarray) -> float:
    """Centreline Dice of two boolean masks, shape HW[D]; see :py:func:`compute_centerline_dice`.

    Returns:
        Score in [0, 1], higher is better; NaN where both masks are empty, 0 where one is.
    """
    return mask_centerline_scores(pred, reference)[0]


def mask_centerline_scores(
    pred: np.ndarray, reference: np.ndarray, centerlines: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[float, float, float]:
    """Centreline Dice of two boolean masks and what it is made of; see :py:func:`compute_centerline_dice`.

    Args:
        pred: prediction, shape HW[D].
        reference: reference of the same shape.
        centerlines: of prediction and reference, where they are known; thinned here when None.

    Returns:
        Dice, precision and sensitivity in [0, 1], higher is better; NaN where both masks are empty, 0 where one is.
    """
    if not pred.any() and not reference.any():
        return (float("nan"),) * 3
    pred_line, line = centerlines or (skeleton(pred), skeleton(reference))
    precision, sensitivity = _fraction_inside(pred_line, reference), _fraction_inside(line, pred)
    total = precision + sensitivity
    return (2 * precision * sensitivity / total if total > 0 else 0.0), precision, sensitivity


def bounding_box(mask: np.ndarray) -> Box:
    """The smallest box that holds every non-zero element; of size 0 where there is none."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        line = mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis))
        occupied = np.flatnonzero(line)
        side = slice(int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else slice(0, 0)
        box.append(side)
        mask = mask[(slice(None),) * axis + (side,)]
    return tuple(box)


def score_classes(
    score: Callable[[np.ndarray, np.ndarray], Score], pred: np.ndarray, reference: np.ndarray, classes: Sequence[int]
) -> list[Score]:
    """Apply a score of two masks to each class of one case, in threads where that pays.

    Each class is cropped to the box that holds it in both arrays, which changes no score of this module and is what
    makes whole volumes affordable.

    Args:
        score: takes the boolean masks of prediction and reference; must not depend on surrounding background.
        pred: class indices (integers), shape (1, H, W[, D]), or one channel of 0 and 1 a class, shape (N, H, W[, D]).
        reference: as ``pred``, on the same grid; each may have either form.
        classes: the indices to score.

    Returns:
        One score a class. The arrays are empty, not missing, for a class in neither.
    """
    if 0 not in classes:
        # one pass over the whole volume; from here on everything costs what the foreground costs
        box = _union(_foreground_box(pred), _foreground_box(reference))
        pred, reference = (np.ascontiguousarray(array[(slice(None), *box)]) for array in (pred, reference))
    boxes = [_union(*pair) for pair in zip(_boxes(pred, classes), _boxes(reference, classes), strict=True)]

    def score_class(index: int, box: Box) -> Score:
        return score(_mask(pred, index, box), _mask(reference, index, box))

    threads = min(len(classes), torch.get_num_threads())
    if threads < 2 or pred[0].size < _VOXELS_WORTH_THREADS:
        return [score_class(*each) for each in zip(classes, boxes, strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(score_class, classes, boxes))


def _foreground_box(case: np.ndarray) -> Box:
    return bounding_box(case[0] if len(case) == 1 else case[1:].max(axis=0))


def _boxes(case: np.ndarray, classes: Sequence[int]) -> list[Box]:
    """The box of each class in one case; of size 0 for an absent class."""
    if len(case) > 1:
        return [bounding_box(case[index]) for index in classes]
    nowhere = (slice(0, 0),) * (case.ndim - 1)
    found = ndimage.find_objects(case[0], max_label=max(classes, default=1))
    return [(found[index - 1] or nowhere) if index else bounding_box(case[0] == 0) for index in classes]


def _union(first: Box, second: Box) -> Box:
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop)) if a.stop and b.stop else (a if a.stop else b)
        for a, b in zip(first, second, strict=True)
    )


def _mask(case: np.ndarray, index: int, box: Box) -> np.ndarray:
    return case[0][box] == index if len(case) == 1 else case[index][box].astype(bool)


def _fraction_inside(centerline: np.ndarray, mask: np.ndarray) -> float:
    inside = mask[centerline]
    return float(inside.mean()) if inside.size else 0.0


def _euler_characteristic(mask: np.ndarray, axis: int = 0) -> int:
    """Vertices - edges + faces - cubes of the closed voxels of a mask that is bordered by background.

    A vertex (edge, face) belongs to the complex where any of the voxels around it does: the mask ORed over windows of
    two along all axes (two axes, one axis).
    """
    if axis == mask.ndim:
        return int(np.count_nonzero(mask))
    along = (slice(None),) * axis
    touched = mask[(*along, slice(1, None))] | mask[(*along, slice(None, -1))]
    return _euler_characteristic(touched, axis + 1) - _euler_characteristic(mask, axis + 1)
