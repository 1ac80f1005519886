"""Step "label map -> scores": every measure of whole images, as functions and as MONAI metrics.

Conventions, of every function here: foreground is 8-connected in 2D and 26-connected in 3D, background 4- and
6-connected, and outside the array is background. A class in neither mask scores NaN (nothing to score). A class in one
mask only is penalised (``absent="penalise"``): overlaps 0, Betti errors the other mask's Betti number, distances the
diagonal of the image. MONAI's metrics leave out every class that is absent from the reference, whatever was predicted,
and have no finite distance for one that is absent from the prediction; ``absent="ignore"`` scores like that, as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric, do_metric_reduction
from monai.utils import MetricReduction, convert_to_numpy

from .mask_measures import MASK_MEASURES, OF_CAVITIES, measure_masks
from .mask_scores import compute_betti_numbers, mask_betti_errors, mask_centerline_dice, score_classes
from .surface_scores import diagonal

__all__ = [
    "BettiErrorMetric",
    "CenterlineDiceMetric",
    "MeasureMetric",
    "compute_betti_error",
    "compute_betti_numbers",
    "compute_centerline_dice",
    "compute_measure",
]


def compute_centerline_dice(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    include_background: bool = False,
    num_classes: int | None = None,
    absent: str = "penalise",
) -> torch.Tensor:
    r"""Score how much of either mask's centreline lies inside the other mask, per class.

    With :math:`S` the skeletons and :math:`V` the masks of prediction and reference,

    .. math::
        P = \frac{|S_{pred} \cap V_{ref}|}{|S_{pred}|}, \quad
        R = \frac{|S_{ref} \cap V_{pred}|}{|S_{ref}|}, \quad
        clDice = \frac{2 P R}{P + R}

    Skeletons are scikit-image's on the array in its stored axis order: turning a volume changes the score by up to
    0.02, so score in the reference's own orientation. A component that scikit-image deletes entirely keeps a
    centreline (:py:func:`monai_skelrec.skeletons.skeleton`); elsewhere the score equals plain scikit-image's.

    Shit et al. "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation."
    CVPR 2021. https://arxiv.org/abs/2003.07311

    Args:
        y_pred: prediction of any real or boolean dtype, shape BNHW[D] with one channel a class (0 and 1; classes may
            overlap), or B1HW[D]: class indices if there are several classes, one mask otherwise.
        y: reference, as ``y_pred``; each may have either form.
        include_background: whether to score channel 0. A single mask is never background.
        num_classes: classes including background; needed where both are class indices.
        absent: "penalise" or "ignore", see the top of this module.

    Returns:
        float32 tensor on the device of ``y_pred``, shape (B, C), in [0, 1], higher is better. NaN where a class is in
        neither, 0 where it is in one only.

    Raises:
        ValueError: when the shapes do not fit the above, a channel holds other than 0 and 1, an index is not a
            class, or ``absent`` is neither of the two.
    """
    return _score_batch(mask_centerline_dice, y_pred, y, include_background, num_classes, absent)


def compute_betti_error(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    dimension: int,
    include_background: bool = False,
    num_classes: int | None = None,
    absent: str = "penalise",
) -> torch.Tensor:
    """Score by how much one Betti number of a prediction is off, per class: ``|b(y_pred) - b(y)|``.

    Args:
        y_pred: prediction, as in :py:func:`compute_centerline_dice`.
        y: reference, as in :py:func:`compute_centerline_dice`.
        dimension: 0 for components, 1 for loops (2D: holes), 2 for cavities (3D only).
        include_background: whether to score channel 0. A single mask is never background.
        num_classes: classes including background; needed where both are class indices.
        absent: "penalise" or "ignore", see the top of this module.

    Returns:
        float32 tensor on the device of ``y_pred``, shape (B, C), whole numbers, lower is better. NaN where a class is
        in neither; where it is in one only, the Betti number of that one.

    Raises:
        ValueError: as :py:func:`compute_centerline_dice`, and when ``dimension`` does not exist in these images.
    """
    if dimension not in range(y_pred.ndim - 2):
        raise ValueError(f"dimension must be 0 or 1 in 2D and 0, 1 or 2 in 3D, got {dimension} for {_shape(y_pred)}.")
    return _score_batch(
        lambda pred, reference: mask_betti_errors(pred, reference)[dimension],
        y_pred,
        y,
        include_background,
        num_classes,
        absent,
    )


def compute_measure(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    measure: str,
    spacing: Sequence[float] | None = None,
    include_background: bool = False,
    num_classes: int | None = None,
    absent: str = "penalise",
) -> torch.Tensor:
    """Score by any measure of :py:data:`monai_skelrec.measures.MEASURES` that looks at one class at a time.

    Args:
        y_pred: prediction, as in :py:func:`compute_centerline_dice`.
        y: reference, as in :py:func:`compute_centerline_dice`.
        measure: such as ``"dice"``, ``"hausdorff95_mm"`` or ``"breaks"``; not ``"false_contacts"`` nor
            ``"side_confusion"``, which look at several classes.
        spacing: edges of a voxel in mm, of all images of the batch; None for 1.
        include_background: whether to score channel 0. A single mask is never background.
        num_classes: classes including background; needed where both are class indices.
        absent: "penalise" or "ignore", see the top of this module.

    Returns:
        float32 tensor on the device of ``y_pred``, shape (B, C).

    Raises:
        ValueError: as :py:func:`compute_centerline_dice`, and when there is no such measure in these images or
            ``spacing`` does not fit them.
    """
    _check_measure(measure)
    dimensions = y_pred.ndim - 2
    if measure in OF_CAVITIES and dimensions == 2:
        raise ValueError(f"{measure} is about cavities, which 3D images have, got {_shape(y_pred)}.")
    if spacing is not None and (len(spacing) != dimensions or not all(edge > 0 for edge in spacing)):
        raise ValueError(f"spacing must have {dimensions} positive values, one an axis, got {list(spacing)}.")
    absent_distance = diagonal(y_pred.shape[2:], spacing) if absent == "penalise" else math.nan
    return _score_batch(
        lambda pred, reference: measure_masks(pred, reference, [measure], spacing, absent_distance)[measure],
        y_pred,
        y,
        include_background,
        num_classes,
        absent,
    )


class _MaskMetric(CumulativeIterationMetric):
    """What the metrics below share: the options and the reduction."""

    def __init__(
        self,
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
        num_classes: int | None = None,
        absent: str = "penalise",
    ) -> None:
        super().__init__()
        _check_absent(absent)
        self.include_background = include_background
        self.reduction = reduction
        self.get_not_nans = get_not_nans
        self.num_classes = num_classes
        self.absent = absent

    def aggregate(
        self, reduction: MetricReduction | str | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Reduce the scores collected since the last ``reset``.

        Args:
            reduction: overrides the constructor's.

        Returns:
            The reduced scores; with ``get_not_nans`` also how many scores each of them rests on. NaN where none does
            (MONAI's own metrics say 0 there).

        Raises:
            ValueError: when nothing was collected.
        """
        scores = self.get_buffer()
        if scores is None:
            raise ValueError(f"{type(self).__name__} has nothing to aggregate: call it on a prediction first.")
        # do_metric_reduction overwrites NaN in what it is given
        reduced, not_nans = do_metric_reduction(scores.clone(), reduction or self.reduction)
        reduced = torch.where(not_nans > 0, reduced, float("nan"))
        return (reduced, not_nans) if self.get_not_nans else reduced


class CenterlineDiceMetric(_MaskMetric):
    """Cumulative :py:func:`compute_centerline_dice`: centreline Dice in [0, 1], higher is better.

    Takes batches (BNHW[D]) or lists of channel-first arrays (NHW[D]), as :py:class:`monai.metrics.DiceMetric`. Unlike
    MONAI's Dice, which leaves out every class absent from the reference, a class that was predicted where there is none
    counts as 0; a class absent from both is left out.

    Args:
        include_background: whether to score channel 0.
        reduction: see :py:class:`monai.utils.MetricReduction`; NaN scores are left out. "mean" is the mean over cases
            of each case's class average.
        get_not_nans: whether ``aggregate`` also returns the number of scores that counted.
        num_classes: classes including background; needed where prediction and reference are class indices.
        absent: "penalise", or "ignore" for MONAI's convention; see the top of this module.

    Raises:
        ValueError: when ``absent`` is neither of the two.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return compute_centerline_dice(y_pred, _wanted(y), self.include_background, self.num_classes, self.absent)


class BettiErrorMetric(_MaskMetric):
    """Cumulative :py:func:`compute_betti_error`: whole numbers, lower is better.

    Args:
        dimension: 0 for components, 1 for loops (2D: holes), 2 for cavities (3D only).
        include_background: whether to score channel 0.
        reduction: see :py:class:`CenterlineDiceMetric`.
        get_not_nans: whether ``aggregate`` also returns the number of scores that counted.
        num_classes: classes including background; needed where prediction and reference are class indices.
        absent: see :py:class:`CenterlineDiceMetric`.

    Raises:
        ValueError: when ``dimension`` is not 0, 1 or 2, or ``absent`` is neither of its two.
    """

    def __init__(
        self,
        dimension: int,
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
        num_classes: int | None = None,
        absent: str = "penalise",
    ) -> None:
        if dimension not in (0, 1, 2):
            raise ValueError(f"dimension must be 0, 1 or 2, got {dimension}.")
        super().__init__(include_background, reduction, get_not_nans, num_classes, absent)
        self.dimension = dimension

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return compute_betti_error(
            y_pred, _wanted(y), self.dimension, self.include_background, self.num_classes, self.absent
        )


class MeasureMetric(_MaskMetric):
    """Cumulative :py:func:`compute_measure`: Dice, HD95, breaks or any other measure of one class, by its name.

    Args:
        measure: a name of :py:data:`monai_skelrec.measures.MEASURES`, which says what it is and which way is better;
            not ``"false_contacts"`` nor ``"side_confusion"``.
        spacing: edges of a voxel in mm; None for 1. A call may give that of its batch: ``metric(y_pred, y,
            spacing=...)``.
        include_background: whether to score channel 0.
        reduction: see :py:class:`CenterlineDiceMetric`.
        get_not_nans: whether ``aggregate`` also returns the number of scores that counted.
        num_classes: classes including background; needed where prediction and reference are class indices.
        absent: see :py:class:`CenterlineDiceMetric`.

    Raises:
        ValueError: when there is no such measure, or ``absent`` is neither of its two.
    """

    def __init__(
        self,
        measure: str,
        spacing: Sequence[float] | None = None,
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
        num_classes: int | None = None,
        absent: str = "penalise",
    ) -> None:
        _check_measure(measure)
        super().__init__(include_background, reduction, get_not_nans, num_classes, absent)
        self.measure = measure
        self.spacing = spacing

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        spacing = kwargs.get("spacing", self.spacing)
        options = self.include_background, self.num_classes, self.absent
        return compute_measure(y_pred, _wanted(y), self.measure, spacing, *options)


def _score_batch(
    score: Callable[[np.ndarray, np.ndarray], float],
    y_pred: torch.Tensor,
    y: torch.Tensor,
    include_background: bool,
    num_classes: int | None,
    absent: str,
) -> torch.Tensor:
    _check_absent(absent)
    if y_pred.ndim not in (4, 5) or y.shape[:1] + y.shape[2:] != y_pred.shape[:1] + y_pred.shape[2:]:
        raise ValueError(f"y_pred and y must be BNHW or BNHWD on one grid, got {_shape(y_pred)} and {_shape(y)}.")
    channels = num_classes or max(y_pred.shape[1], y.shape[1])
    if {y_pred.shape[1], y.shape[1]} - {1, channels}:
        raise ValueError(
            f"y_pred and y must have 1 channel or one a class ({channels}), got {_shape(y_pred)} and {_shape(y)}."
        )
    # a single mask is an index map whose only class is 1
    indices = max(channels, 2)
    classes = range(0 if include_background and channels > 1 else 1, indices)

    def score_or_ignore(pred: np.ndarray, reference: np.ndarray) -> float:
        return score(pred, reference) if absent == "penalise" or reference.any() else math.nan

    scores = [
        score_classes(score_or_ignore, _array(pred, indices, "y_pred"), _array(reference, indices, "y"), classes)
        for pred, reference in zip(y_pred, y, strict=True)
    ]
    return torch.tensor(scores, dtype=torch.float32, device=y_pred.device).reshape(-1, len(classes))


def _array(case: torch.Tensor, indices: int, name: str) -> np.ndarray:
    """One case (N, H, W[, D]) as integers, with its values checked: a wrong value would be a wrong class unnoticed."""
    array = convert_to_numpy(case.detach())
    if array.dtype == bool:
        return array.view(np.uint8)
    limit = indices if len(array) == 1 else 2
    # an empty array has no extremes; comparisons with NaN are false, so NaN is refused too
    if array.size and not (array.min() >= 0 and array.max() < limit):
        wanted = f"class indices 0 to {limit - 1}" if limit > 2 else "0 and 1 only"
        raise ValueError(
            f"{name} must hold {wanted}, got values from {array.min()} to {array.max()}; apply argmax or a threshold "
            "to a network's output, and give num_classes with class indices."
        )
    integers = array.astype(np.uint8 if limit <= 256 else np.int32, copy=False)
    if np.issubdtype(array.dtype, np.floating) and (integers != array).any():
        raise ValueError(f"{name} must hold whole numbers, got fractions; apply argmax or a threshold to it first.")
    return integers


def _check_absent(absent: str) -> None:
    if absent not in ("penalise", "ignore"):
        raise ValueError(f"absent must be 'penalise' or 'ignore', got {absent!r}.")


def _check_measure(measure: str) -> None:
    if measure not in MASK_MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MASK_MEASURES)}, got {measure!r}.")


def _wanted(y: torch.Tensor | None) -> torch.Tensor:
    if y is None:
        raise ValueError("y, the reference, is needed: call the metric with y_pred and y.")
    return y


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
