"""Tubed skeleton and logits -> loss: Equations 1 and 2 of the paper as MONAI losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.networks import one_hot
from monai.utils import LossReduction
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

__all__ = ["DiceCESkeletonRecallLoss", "SkeletonRecallLoss"]


class SkeletonRecallLoss(_Loss):
    r"""One minus the soft recall of a prediction on a tubed skeleton, averaged over the classes that have a tube."""

    weight: torch.Tensor | None

    def __init__(
        self,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reduction: LossReduction | str = LossReduction.MEAN,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | torch.Tensor | None = None,
        absent: str = "skip",
    ) -> None:
        super().__init__(reduction=_one_of("reduction", reduction, ("mean", "sum", "none")))
        if int(sigmoid) + int(softmax) + int(other_act is not None) > 1:
            raise ValueError("sigmoid, softmax and other_act exclude each other; set at most one of them.")
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.absent = _one_of("absent", absent, ("skip", "count"))
        self.register_buffer("weight", _class_weights(weight))

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        n_classes = input.shape[1]
        if self.softmax and n_classes == 1:
            raise ValueError("softmax needs at least 2 channels, got 1; use sigmoid=True.")
        index = self.to_onehot_y and n_classes > 1
        channels = 1 if index else n_classes
        if target.shape != (input.shape[0], channels, *input.shape[2:]):
            raise ValueError(
                f"target must have shape {(input.shape[0], channels, *input.shape[2:])} for input "
                f"{tuple(input.shape)} and to_onehot_y={self.to_onehot_y}, got {tuple(target.shape)}."
            )
        if self.sigmoid and not index and n_classes > 1 and not self.include_background:
            raise ValueError("include_background=False would drop the first region of a multi-hot target; set True.")
        if index:
            _check_indices("target", target, n_classes, None)
            target = one_hot(target, n_classes)
        probability = input
        if self.sigmoid:
            probability = torch.sigmoid(input)
        elif self.softmax:
            probability = torch.softmax(input, 1)
        elif self.other_act is not None:
            probability = self.other_act(input)
        first = 1 if n_classes > 1 and (index or not self.include_background) else 0
        weight = _weights_for(self.weight, input)
        loss, n = _recall_terms(
            probability.flatten(2)[:, first:],
            target.flatten(2)[:, first:].to(probability.dtype),
            weight[first:],
            self.smooth_nr,
            self.smooth_dr,
            self.batch,
            self.absent,
        )
        if self.reduction == "none":
            return loss.reshape(*loss.shape, *[1] * (input.ndim - 2))
        if self.reduction == "sum":
            return loss.sum()
        return (loss.sum(1) / n).mean()


class DiceCESkeletonRecallLoss(_Loss):
    """Dice plus cross-entropy plus skeleton recall: Equation 2 of the paper, on logits."""

    weight: torch.Tensor | None

    def __init__(
        self,
        include_background: bool = False,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        lambda_skeleton: float = 1.0,
        sigmoid: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | torch.Tensor | None = None,
        absent: str = "skip",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=_one_of("reduction", reduction, ("mean", "sum")))
        for name, value in (
            ("lambda_dice", lambda_dice),
            ("lambda_ce", lambda_ce),
            ("lambda_skeleton", lambda_skeleton),
        ):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        if ignore_index == 0:
            raise ValueError("ignore_index must not be 0, which is background and 'no tube'.")
        self.include_background = include_background
        self.lambda_dice = float(lambda_dice)
        self.lambda_ce = float(lambda_ce)
        self.lambda_skeleton = float(lambda_skeleton)
        self.sigmoid = sigmoid
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.absent = _one_of("absent", absent, ("skip", "count"))
        self.ignore_index = ignore_index
        self.register_buffer("weight", _class_weights(weight))

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        n_classes = input.shape[1]
        if n_classes == 1 and not self.sigmoid:
            raise ValueError("softmax needs at least 2 channels, got 1; use sigmoid=True.")
        multi_hot = self.sigmoid and target.shape[1] == 2 * n_classes
        channels = 2 * n_classes if multi_hot else 2
        if target.shape != (input.shape[0], channels, *input.shape[2:]):
            raise ValueError(f"target must stack label and tubed skeleton, got shape {tuple(target.shape)}.")
        if multi_hot and n_classes > 1 and not self.include_background:
            raise ValueError("include_background=False would drop the first region of a multi-hot target; set True.")
        label, tube = target.flatten(2).chunk(2, 1)
        keep = torch.ones_like(label[:, :1], dtype=torch.bool)
        if self.ignore_index is not None:
            keep = (label != self.ignore_index).all(1, keepdim=True)
        label, tube = torch.where(keep, label, 0), torch.where(keep, tube, 0)
        if not multi_hot:
            _check_indices("label", label, n_classes, self.ignore_index)
            _check_indices("tubed skeleton", tube, n_classes, None)
            indices = label[:, 0].long()
            label, tube = one_hot(label, n_classes), one_hot(tube, n_classes)
        x = input.flatten(2)
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mask = keep.to(x.dtype)
        y, t = label.to(x.dtype) * mask, tube.to(x.dtype) * mask
        weight = _weights_for(self.weight, x)

        p = torch.sigmoid(x) if self.sigmoid else torch.softmax(x, 1)
        mean = self.reduction == "mean"
        if self.sigmoid:
            ce = F.binary_cross_entropy_with_logits(x, y, pos_weight=weight[:, None], reduction="none")
            ce, voxels = (ce * mask).sum(), n_classes * mask.sum()
        else:
            ce = (F.cross_entropy(x, indices, weight=weight, reduction="none") * mask[:, 0]).sum()
            voxels = (weight[indices] * mask[:, 0]).sum()
        if mean:
            ce = ce / torch.where(voxels > 0, voxels, 1)
        if n_classes == 1:
            weight = torch.ones_like(weight)

        axes = [0, 2] if self.batch else [2]
        first = 1 if n_classes > 1 and not self.include_background else 0
        union = (p * mask).sum(axes) + y.sum(axes) + self.smooth_dr
        overlap = 2 * (p * y).sum(axes) + self.smooth_nr
        dice = torch.where(union > 0, 1 - overlap / torch.where(union > 0, union, 1), 0 * overlap) * weight
        dice = dice.reshape(-1, n_classes)[:, first:]

        first = 0 if multi_hot else 1
        recall, n = _recall_terms(
            p[:, first:], t[:, first:], weight[first:], self.smooth_nr, self.smooth_dr, self.batch, self.absent
        )
        skeleton = (recall.sum(1) / n).mean() if mean else recall.sum()
        return (
            self.lambda_dice * (dice.mean() if mean else dice.sum())
            + self.lambda_ce * ce
            + self.lambda_skeleton * skeleton
        )


def _recall_terms(
    p: torch.Tensor, t: torch.Tensor, weight: torch.Tensor, nr: float, dr: float, batch: bool, absent: str
) -> tuple[torch.Tensor, torch.Tensor]:
    axes = [0, 2] if batch else [2]
    hit, size = (p * t).sum(axes), t.sum(axes)
    hit, size = hit.reshape(-1, p.shape[1]), size.reshape(-1, p.shape[1])
    present = size > 0
    loss = torch.where(present, 1 - (hit + nr) / (size + dr).clamp(min=1e-8), 0 * hit) * weight
    n = present.sum(1).clamp(min=1) if absent == "skip" else torch.full_like(size[:, 0], p.shape[1])
    return loss, n


def _check_indices(name: str, index: torch.Tensor, n_classes: int, ignore_index: int | None) -> None:
    low, high = (int(v) for v in index.aminmax())
    if low < 0 or high >= n_classes:
        raise ValueError(f"{name} must hold class indices from 0 to {n_classes - 1}, got {low} to {high}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    value = str(value)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
    return value


def _class_weights(weight: Sequence[float] | torch.Tensor | None) -> torch.Tensor | None:
    if weight is None:
        return None
    weight = torch.as_tensor(weight, dtype=torch.float64)
    if weight.ndim != 1 or weight.min() < 0:
        raise ValueError("weight must be one number of at least 0 per class, background included.")
    return weight


def _weights_for(weight: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    if weight is None:
        return torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    if len(weight) != x.shape[1]:
        raise ValueError(f"weight must have one number per channel of input, {x.shape[1]}, got {len(weight)}.")
    return weight.to(x)
