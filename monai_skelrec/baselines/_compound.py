"""Logits and stacked target -> Dice, cross-entropy and one further term: what the rival losses have in common."""

from __future__ import annotations

from typing import NamedTuple

import torch
from monai.data import MetaTensor
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from ..losses import DiceCESkeletonRecallLoss
from ..tube_entries import counted

__all__ = ["ClassFields", "CompoundLoss", "HarmonicLoss", "Ratio", "class_fields", "harmonic_loss", "label_of"]


Ratio = tuple[torch.Tensor, torch.Tensor]


class ClassFields(NamedTuple):
    """Each class that an item holds as a field of its own, one after the other; M of them.

    A class is scored where the label holds it: in its item, or with ``batch`` in any item of the batch. Ignored voxels
    are background in label and prediction.
    """

    p: torch.Tensor  # probabilities, shape M1H[WD], float32 or float64
    y: torch.Tensor  # label, 0 or 1, shape M1H[WD], dtype of p
    item: torch.Tensor  # of each field, shape (M,)
    channel: torch.Tensor  # of each field, in the logits, shape (M,)
    logits: torch.Tensor  # shape BNH[WD], dtype of p
    label: torch.Tensor  # class indices, shape B1H[WD], or 0 and 1, shape BNH[WD]
    keep: torch.Tensor  # False where ignored, shape B1H[WD]
    sigmoid: bool
    batch: bool

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the voxels of each field, with ``batch`` over the fields of a class; float64."""
        sums = x.flatten(1).sum(1, dtype=torch.float64)
        if not self.batch:
            return sums
        classes, row = self.channel.unique(return_inverse=True)
        return sums.new_zeros(len(classes)).index_add(0, row, sums)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the classes of an item, then over all items; an item without any class adds 0."""
        if self.batch:
            return values.mean()
        n_items = len(self.logits)
        n_classes = torch.bincount(self.item, minlength=n_items)
        return (values / n_classes[self.item]).sum() / n_items

    def entropy(self) -> torch.Tensor:
        """Cross-entropy of each voxel of each field, shape M1H[WD]; softmax has one for all classes of an item."""
        keep = self.keep[self.item]
        if self.sigmoid:
            logits = self.logits[self.item, self.channel].unsqueeze(1)
            return F.binary_cross_entropy_with_logits(logits, self.y, reduction="none") * keep
        label = torch.where(self.keep, self.label, 0)[:, 0].long()
        return F.cross_entropy(self.logits, label, reduction="none").unsqueeze(1)[self.item] * keep


def label_of(input: torch.Tensor, target: torch.Tensor, sigmoid: bool) -> torch.Tensor:
    """The label's channels of a target in which label and tubed skeleton are stacked.

    Args:
        input: logits, shape BNH[WD].
        target: B2H[WD], B(1+N)H[WD], or with ``sigmoid`` B(2N)H[WD].
        sigmoid: whether the channels may be regions that overlap.

    Returns:
        Class indices, shape B1H[WD], or 0 and 1, shape BNH[WD].

    Raises:
        ValueError: when the shapes do not fit.
    """
    n_classes = input.shape[1]
    channels = {2, 1 + n_classes} | ({2 * n_classes} if sigmoid else set())
    given = (len(target), *target.shape[2:])
    if given != (len(input), *input.shape[2:]) or target.shape[1] not in channels:
        raise ValueError(
            f"target must have {' or '.join(map(str, sorted(channels)))} channels, label and tubed skeleton stacked, "
            f"for input of shape {tuple(input.shape)}, got {tuple(target.shape)}."
        )
    return target[:, : n_classes if sigmoid and target.shape[1] == 2 * n_classes else 1]


def class_fields(
    input: torch.Tensor, label: torch.Tensor, sigmoid: bool, batch: bool, ignore_index: int | None
) -> ClassFields:
    """Probabilities and label of each class that is there.

    Args:
        input: logits, shape BNH[WD]; half precision is computed in float32.
        label: class indices, shape B1H[WD], of which 0 is no field; or 0 and 1, shape BNH[WD].
        sigmoid: independent channels instead of exclusive classes.
        batch: whether a class of any item is a field of all items.
        ignore_index: label of voxels that do not count.
    """
    logits = input if input.dtype == torch.float64 else input.float()
    n_classes = logits.shape[1]
    keep = counted(label, ignore_index)
    first = 0 if label.shape[1] == n_classes else 1
    values = torch.ones(n_classes) if first == 0 else torch.arange(first, n_classes)
    hot = (label == values.to(label).view(1, -1, *[1] * (label.ndim - 2))) & keep
    present = hot.flatten(2).any(2)
    if batch:
        present = present.any(0, keepdim=True).expand_as(present)
    item, field = present.nonzero(as_tuple=True)
    p = torch.sigmoid(logits) if sigmoid else torch.softmax(logits, 1)
    p = p[item, field + first].unsqueeze(1) * keep[item]
    y = hot[item, field].unsqueeze(1).to(p)
    return ClassFields(p, y, item, field + first, logits, label, keep, sigmoid, batch)


def harmonic_loss(fields: ClassFields, precision: Ratio, recall: Ratio, smooth: float) -> torch.Tensor:
    r"""One minus the harmonic mean of two ratios, per class: what clDice and its descendants end with.

    .. math::
        1 - \frac{2 P R}{P + R}, \qquad P = \frac{P_{nr} + smooth}{P_{dr} + smooth},\quad R \text{ likewise}

    Args:
        fields: whose voxels are summed.
        precision: numerator and denominator of each voxel, shape M1H[WD].
        recall: likewise.
        smooth: added to the four sums.

    Returns:
        Scalar, float64.
    """
    p, r = ((fields.total(nr) + smooth) / (fields.total(dr) + smooth) for nr, dr in (precision, recall))
    # both are 0 only without smoothing, where nothing at all was found
    return fields.mean(1 - 2 * p * r / (p + r).clamp(min=1e-12))


class CompoundLoss(_Loss):
    """Dice and cross-entropy as in :py:class:`monai_skelrec.DiceCESkeletonRecallLoss`, and a term of a subclass.

    Args:
        iterations: layers that the skeleton of the term takes off; at least half the thickness of the thickest class,
            in voxels.
        include_background: whether Dice counts channel 0; True for overlapping regions. The term never scores the
            background of class indices.
        lambda_dice: weight of Dice.
        lambda_ce: weight of cross-entropy.
        lambda_skeleton: weight of the term, which takes the place of skeleton recall; at 0 it is not computed.
        sigmoid: independent channels instead of exclusive classes.
        batch: whether the sums go over the batch too, as if it were one item. Under DistributedDataParallel those of
            the term are of the batch of one process.
        ignore_index: label of voxels that nothing counts; to a skeleton they are background.

    Attributes:
        terms: the terms of the last call before they are weighted, without gradient.
        ramp: factor of ``lambda_skeleton``, 1 unless :py:class:`monai_skelrec.handlers.WarmUp` sets it; at 0 the term
            is not computed.

    Raises:
        ValueError: when ``iterations`` is below 1 or a weight is negative.
    """

    # of the term among `terms`
    NAME = ""

    def __init__(
        self,
        iterations: int = 10,
        include_background: bool = False,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        lambda_skeleton: float = 1.0,
        sigmoid: bool = False,
        batch: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if lambda_skeleton < 0:
            raise ValueError(f"lambda_skeleton must be at least 0, got {lambda_skeleton}.")
        if iterations < 1:
            raise ValueError(
                f"iterations must be at least 1, half the thickness of the thickest class, got {iterations}."
            )
        self.iterations = iterations
        self.dice_ce = DiceCESkeletonRecallLoss(
            include_background=include_background,
            lambda_dice=lambda_dice,
            lambda_ce=lambda_ce,
            lambda_skeleton=0,
            sigmoid=sigmoid,
            batch=batch,
            ignore_index=ignore_index,
        )
        self.lambda_skeleton = float(lambda_skeleton)
        self.sigmoid = sigmoid
        self.batch = batch
        # under this name the deep-supervision loss looks for it
        self.ignore_index = ignore_index
        self.ramp = 1.0
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: logits, shape BNH[WD].
            target: as :py:class:`monai_skelrec.DiceCESkeletonRecallLoss` takes it: label and tubed skeleton stacked,
                B2H[WD], B(1+N)H[WD] or B(2N)H[WD]. The tube is not used.

        Returns:
            Scalar, lower is better. float32 for half precision.

        Raises:
            ValueError: when shapes or values do not fit.
        """
        input, target = (x.as_tensor() if isinstance(x, MetaTensor) else x for x in (input, target))
        label = label_of(input, target, self.sigmoid)
        loss: torch.Tensor = self.dice_ce(input, target)
        self.terms = {name: self.dice_ce.terms[name] for name in ("dice", "ce")}
        weight = self.lambda_skeleton * self.ramp
        if weight == 0:
            return loss
        with torch.autocast(input.device.type, enabled=False):
            fields = class_fields(input, label, self.sigmoid, self.batch, self.ignore_index)
            # without any class there is nothing to score, and the graph stays
            term = self.term(fields) if len(fields.p) else fields.p.sum()
        self.terms[self.NAME] = term.detach().to(loss.dtype)
        return loss + weight * term.to(loss.dtype)

    def term(self, fields: ClassFields) -> torch.Tensor:
        """The further term; a scalar, at least one field is there."""
        raise NotImplementedError


class HarmonicLoss(CompoundLoss):
    """A term that ends in :py:func:`harmonic_loss`, of the two ratios that a subclass gives.

    Args:
        iterations: see :py:class:`CompoundLoss`, as all but ``smooth``.
        smooth: added to numerators and denominators.
    """

    def __init__(
        self,
        iterations: int = 10,
        smooth: float = 1.0,
        include_background: bool = False,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        lambda_skeleton: float = 1.0,
        sigmoid: bool = False,
        batch: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            iterations, include_background, lambda_dice, lambda_ce, lambda_skeleton, sigmoid, batch, ignore_index
        )
        self.smooth = float(smooth)

    def term(self, fields: ClassFields) -> torch.Tensor:
        return harmonic_loss(fields, *self.ratios(fields), self.smooth)

    def ratios(self, fields: ClassFields) -> tuple[Ratio, Ratio]:
        """Precision and recall, each as numerator and denominator of every voxel, shape M1H[WD]."""
        raise NotImplementedError
