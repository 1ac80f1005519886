"""Logits and tubed skeleton -> loss: Equations 1 and 2 of the paper as MONAI losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.data import MetaTensor
from monai.utils import LossReduction
from torch.nn.modules.loss import _Loss

from .chunks import term_dtype
from .fused import Formula, fused_loss

__all__ = ["DiceCESkeletonRecallLoss", "SkeletonRecallLoss"]


class SkeletonRecallLoss(_Loss):
    r"""How much of each tubed skeleton a prediction misses: one minus soft recall, averaged over classes.

    .. math::
        \frac{1}{B} \sum_b \frac{1}{|C_b|} \sum_{c \in C_b}
        w_c \left(1 - \frac{\sum_i T_{bci}\, p_{bci} + smooth_{nr}}{\sum_i T_{bci} + smooth_{dr}}\right)

    with probabilities :math:`p`, tube :math:`T` and the classes :math:`C_b` that have a tube in item :math:`b`; an
    item without any tube adds 0. This is Equation 1 of [1] plus one, so that a perfect prediction costs 0; gradients
    are equal. False positives are free: use it beside an overlap loss, as
    :py:class:`DiceCESkeletonRecallLoss` does.

    Only voxels on a tube are read, so the cost hardly depends on the size of the volume.

    [1] Kirchhoff et al. "Skeleton Recall Loss for Connectivity Conserving and Resource Efficient Segmentation of
    Thin Tubular Structures." ECCV 2024. https://arxiv.org/abs/2404.03010

    Args:
        include_background: whether channel 0 of a target of N channels is scored. In class indices 0 means "no tube"
            and is never scored; a single channel always is.
        to_onehot_y: whether ``target`` holds class indices; of no effect with one channel, which is its own mask. A
            target of N channels is then taken as it is: classes that may share a voxel, the first being "no tube".
        sigmoid: ``input`` holds logits of independent channels.
        softmax: ``input`` holds logits of exclusive classes.
        other_act: function from ``input`` to probabilities. Without any activation ``input`` holds probabilities.
        reduction: ``"mean"`` as above; ``"sum"`` over items and classes; ``"none"`` keeps both.
        smooth_nr: added to the recalled sum.
        smooth_dr: added to the size of the tube.
        batch: whether sums go over the batch too, as if it were one item.
        weight: one number of at least 0 per channel of ``input``, background included. Weights multiply and never
            divide; a single channel takes none.
        absent: ``"skip"`` leaves a class without tube out of :math:`C_b`; ``"count"`` counts it as recalled, which
            shrinks the others' share, as the published code does through its smoothing.

    Attributes:
        terms: ``{"skeleton_recall": value}`` of the last call, detached, for a log.

    Raises:
        ValueError: when more than one activation is given, or ``reduction``, ``absent`` or ``weight`` is none of the
            above.

    Example:
        >>> tube = torch.tensor([0, 1, 1, 2]).view(1, 1, 1, 4)
        >>> found = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 2])).T.view(1, 3, 1, 4).float()
        >>> SkeletonRecallLoss(to_onehot_y=True)(found, tube)
        tensor(0.2500)
    """

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
            raise ValueError("sigmoid, softmax and other_act exclude each other: set at most one of them.")
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.absent = _one_of("absent", absent, ("skip", "count"))
        self.terms: dict[str, torch.Tensor] = {}
        self.register_buffer("weight", _class_weights(weight), persistent=False)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: logits or probabilities, shape BNH[WD].
            target: tubed skeleton; class indices, shape B1H[WD], with ``to_onehot_y``; or 0 and 1, shape BNH[WD].

        Returns:
            Scalar of at least 0, lower is better; with ``reduction="none"`` shape (B, classes, 1, ...), B = 1 with
            ``batch``, 0 for a class without tube. float32 for half precision.

        Raises:
            ValueError: when the shapes do not fit; ``target`` holds other values; softmax is asked of one channel;
                the background of overlapping channels (``sigmoid`` without ``to_onehot_y``) is to be left out, which
                would drop a region; or ``input`` holds no probabilities and no activation was given.
        """
        input, target = _plain(input), _plain(target)
        n_items, n_classes = input.shape[:2]
        exclusive = self.to_onehot_y and n_classes > 1
        indices = exclusive and not _has_channels(target, n_classes)
        _check_shape(input, target, 1 if indices else n_classes, "set to_onehot_y=True for class indices")
        if self.softmax:
            _check_softmax(n_classes)
        if self.sigmoid and not exclusive:
            _check_background(n_classes, self.include_background)
        first = 1 if exclusive or (n_classes > 1 and not self.include_background) else 0

        scored = target if indices else target[:, first:]
        item, channel, *voxel = scored.nonzero(as_tuple=True)
        values = scored[(item, channel, *voxel)]
        if indices:
            channel = values.long()
            if ((channel < 0) | (channel >= n_classes) | (channel != values)).any():
                raise ValueError(
                    f"target must hold whole class indices from 0 to {n_classes - 1}, "
                    f"got values from {values.min().item():g} to {values.max().item():g}."
                )
        else:
            channel = channel + first
            if (values != 1).any():
                raise ValueError(f"target must be 0 or 1 in each of its {n_classes} channels, got other values.")

        p = self._probabilities(input, item, channel, voxel).double()
        rows = 1 if self.batch else n_items
        place = channel if self.batch else item * n_classes + channel
        recalled = p.new_zeros(rows * n_classes).index_add(0, place, p).view(rows, n_classes)[:, first:]
        size = torch.bincount(place, minlength=rows * n_classes).double().view(rows, n_classes)[:, first:]

        weight = _weight_of(self.weight, input)
        share = (size > 0).double() if weight is None or n_classes == 1 else (size > 0) * weight[first:]
        loss = share * (1 - (recalled + self.smooth_nr) / (size + self.smooth_dr).clamp(min=1e-8))
        if self.reduction == "none":
            loss = loss.reshape(*loss.shape, *[1] * (input.ndim - 2))
        elif self.reduction == "sum":
            loss = loss.sum()
        elif self.absent == "skip":
            loss = (loss.sum(1) / (size > 0).sum(1).clamp(min=1)).mean()
        else:
            loss = loss.mean()
        loss = loss.to(term_dtype(input))
        self.terms = {"skeleton_recall": loss.detach()}
        return loss

    def _probabilities(
        self, input: torch.Tensor, item: torch.Tensor, channel: torch.Tensor, voxel: list[torch.Tensor]
    ) -> torch.Tensor:
        """Probability of each positive entry of the target."""
        if self.softmax:
            logits = input.movedim(1, -1)[(item, *voxel)]  # (entries, N)
            if logits.dtype in (torch.float16, torch.bfloat16):
                logits = logits.float()
            return torch.softmax(logits, 1).gather(1, channel[:, None])[:, 0]
        if self.other_act is not None:
            input = self.other_act(input)
        p = input[(item, channel, *voxel)]
        if self.sigmoid:
            return torch.sigmoid(p.double())
        # half precision rounds probabilities to a few thousandths
        if self.other_act is None and ((p < -0.01) | (p > 1.01)).any():
            raise ValueError(
                f"input must hold probabilities when no activation is given, got values from {p.min().item():g} to "
                f"{p.max().item():g}; set softmax=True or sigmoid=True for logits."
            )
        return p


class DiceCESkeletonRecallLoss(_Loss):
    r"""Dice, cross-entropy and skeleton recall in one: Equation 2 of [1], on logits.

    .. math::
        \lambda_{dice} D + \lambda_{ce} CE + \lambda_{skeleton} \bar R

    :math:`D` is the soft Dice loss and :math:`CE` the cross-entropy of MONAI's ``DiceCELoss``, :math:`\bar R` the
    mean of :py:class:`SkeletonRecallLoss`. Equation 2 has minus Dice and minus recall; one minus either adds
    the constant ``lambda_dice + lambda_skeleton`` and no gradient. With ``absent="count"`` the rest equals the
    published loss.

    Value and gradient come from one pass over the logits each, in closed form and in bounded memory, see
    :py:func:`monai_skelrec.fused.fused_loss`: at fourteen classes this costs about a third of the time and a quarter
    of the memory of MONAI's ``DiceCELoss`` alone. It can be differentiated once, not twice. Half-precision logits are
    computed in float32 and summed in float64. Under DistributedDataParallel with ``batch=True`` the sums are those of
    the batch of all processes, as long as ``input`` requires a gradient.

    [1] Kirchhoff et al. "Skeleton Recall Loss for Connectivity Conserving and Resource Efficient Segmentation of
    Thin Tubular Structures." ECCV 2024. https://arxiv.org/abs/2404.03010

    Args:
        include_background: whether Dice counts channel 0. Skeleton recall never scores index 0, which means "no
            tube"; overlapping regions have no background, so they need True. A single channel always counts.
        lambda_dice: weight of Dice.
        lambda_ce: weight of cross-entropy.
        lambda_skeleton: weight of skeleton recall; the paper uses 0.1 and 1.0.
        sigmoid: independent channels instead of exclusive classes; cross-entropy is then binary, averaged over
            channels too.
        reduction: ``"mean"``, or ``"sum"`` over items and classes, for cross-entropy over voxels.
        smooth_nr: added to the numerators of Dice and recall.
        smooth_dr: added to their denominators.
        batch: whether the sums of Dice and recall go over the batch too, as if it were one item.
        weight: one number of at least 0 per channel of ``input``, background included: of each class in Dice and
            recall, of each voxel by its label in softmax cross-entropy, of positive voxels in binary cross-entropy.
            A single channel has the last only.
        absent: see :py:class:`SkeletonRecallLoss`.
        ignore_index: label of voxels that no term counts; overlapping regions: in any channel of the label.

    Attributes:
        terms: the three terms of the last call before they are weighted, scalars without gradient, for a log:
            ``dice``, ``ce`` and ``skeleton_recall``. Empty before the first call.
        ramp: factor of ``lambda_skeleton``, 1 unless :py:class:`monai_skelrec.handlers.WarmUp` sets it.

    Raises:
        ValueError: when a lambda is negative, ``ignore_index`` is 0 (background), or ``reduction``, ``absent`` or
            ``weight`` is none of the above.

    Example:
        >>> label = torch.tensor([0, 1, 1, 2]).view(1, 1, 1, 4)
        >>> tube = torch.tensor([0, 1, 0, 2]).view(1, 1, 1, 4)
        >>> certain = 50.0 * torch.nn.functional.one_hot(label[:, 0]).movedim(-1, 1)
        >>> DiceCESkeletonRecallLoss()(certain, torch.cat([label, tube], 1))
        tensor(0.)
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        include_background: bool = False,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        lambda_skeleton: float = 1.0,
        sigmoid: bool = False,
        reduction: LossReduction | str = LossReduction.MEAN,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | torch.Tensor | None = None,
        absent: str = "skip",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=_one_of("reduction", reduction, ("mean", "sum")))
        lambdas = {"lambda_dice": lambda_dice, "lambda_ce": lambda_ce, "lambda_skeleton": lambda_skeleton}
        for name, value in lambdas.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        if ignore_index == 0:
            raise ValueError("ignore_index must not be 0, which is background: choose another label value to ignore.")
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
        self.ramp = 1.0
        self.terms: dict[str, torch.Tensor] = {}
        self.register_buffer("weight", _class_weights(weight), persistent=False)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: logits, shape BNH[WD].
            target: label and its tubed skeleton stacked on the channel axis (MONAI's trainer hands a loss one
                target; ``ConcatItemsd`` stacks them). Class indices, shape B2H[WD]; or a label of class indices and a
                tube of 0 and 1 for each class, which may then share a voxel, shape B(1+N)H[WD]; or with ``sigmoid``,
                for overlapping regions, N channels of 0 and 1 of the label and N of the tube, shape B(2N)H[WD].

        Returns:
            Scalar, lower is better, 0 for a perfect and certain prediction. float32 for half precision.

        Raises:
            ValueError: when the shapes do not fit; ``target`` holds a value that is neither a class nor
                ``ignore_index``; softmax is asked of one channel; or overlapping regions come with
                ``include_background=False``, which would drop one.
        """
        input, target = _plain(input), _plain(target)
        n_classes = input.shape[1]
        if not self.sigmoid:
            _check_softmax(n_classes)
        overlapping = self.sigmoid and _has_channels(target, 2 * n_classes)
        channels = n_classes if overlapping else 1
        tubes = n_classes if overlapping or _has_channels(target, 1 + n_classes) else 1
        _check_shape(input, target, channels + tubes, "stack the label and its tubed skeleton on the channel axis")
        if overlapping:
            _check_background(n_classes, self.include_background)
        formula = Formula(
            include_background=self.include_background,
            lambda_dice=self.lambda_dice,
            lambda_ce=self.lambda_ce,
            lambda_skeleton=self.lambda_skeleton * self.ramp,
            sigmoid=self.sigmoid,
            reduction=self.reduction,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            batch=self.batch,
            absent=self.absent,
            ignore_index=self.ignore_index,
        )
        weight = _weight_of(self.weight, input)
        loss, terms = fused_loss(input, target[:, :channels], target[:, channels:], weight, formula)
        self.terms = dict(zip(("dice", "ce", "skeleton_recall"), terms.unbind()))
        return loss


def _plain(x: torch.Tensor) -> torch.Tensor:
    """Without metadata, which MONAI's MetaTensor would carry through each operation."""
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def _has_channels(target: torch.Tensor, channels: int) -> bool:
    return target.ndim > 1 and target.shape[1] == channels


def _check_shape(input: torch.Tensor, target: torch.Tensor, channels: int, advice: str) -> None:
    wanted = (input.shape[0], channels, *input.shape[2:])
    if target.shape != wanted:
        raise ValueError(
            f"target must have shape {wanted} for input of shape {tuple(input.shape)}, "
            f"got {tuple(target.shape)}; {advice}."
        )


def _check_softmax(n_classes: int) -> None:
    if n_classes == 1:
        raise ValueError("softmax needs a background and at least one class, got one channel; set sigmoid=True.")


def _check_background(n_classes: int, include_background: bool) -> None:
    if n_classes > 1 and not include_background:
        raise ValueError(
            f"include_background=False would drop the first of {n_classes} overlapping regions: "
            "set include_background=True, or give class indices."
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if str(value) not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value}.")
    return str(value)


def _class_weights(weight: Sequence[float] | torch.Tensor | None) -> torch.Tensor | None:
    if weight is None:
        return None
    weight = torch.as_tensor(weight, dtype=torch.float64)
    if weight.ndim != 1 or not (weight >= 0).all():
        raise ValueError(f"weight must be a list of numbers of at least 0, one per class, got {weight.tolist()}.")
    return weight


def _weight_of(weight: torch.Tensor | None, input: torch.Tensor) -> torch.Tensor | None:
    if weight is None:
        return None
    if len(weight) != input.shape[1]:
        raise ValueError(
            f"weight must have one number per channel of input, background included: {input.shape[1]}, "
            f"got {len(weight)}."
        )
    # float64 again, should the module have been moved to another type
    return weight.to(input.device, torch.float64)
