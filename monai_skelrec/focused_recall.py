"""Logits and tubed skeleton -> skeleton recall whose gradient is not the same everywhere: gaps, and small branches.

Experimental: whether it helps is for a comparison of losses to say, see ``bundle/docs/comparing.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.data import MetaTensor
from torch.nn.modules.loss import _Loss

from .chunks import term_dtype
from .deep_supervision import TubeDeepSupervisionLoss
from .tube_entries import counted, label_channels, log_probabilities, refuse_negative, shares, without_background

__all__ = ["FocusedRecallLoss", "focused_recall"]

_OVER = ("class", "branch", "voxel")


class _Units(NamedTuple):
    """The tube of a batch, voxel by voxel, and the units whose recall is a number each."""

    item: torch.Tensor  # of each entry, as what follows
    channel: torch.Tensor
    voxel: list[torch.Tensor]
    unit: torch.Tensor
    unit_item: torch.Tensor  # of each unit
    unit_channel: torch.Tensor


class FocusedRecallLoss(_Loss):
    r"""Any loss of this package plus skeleton recall that looks closer at what is missed. Experimental.

    .. math::
        L + ramp \cdot \lambda_{recall}\, M

    with :math:`M` of :py:func:`focused_recall`; over heads of several resolutions, with the weights of the
    :py:class:`monai_skelrec.TubeDeepSupervisionLoss` in ``loss``, each head read at the blocks of the full tube. It is
    made to stand in the place of skeleton recall: give the loss within ``lambda_skeleton=0``.

    Args:
        loss: Dice and cross-entropy, with or without skeleton recall.
        lambda_recall: weight of the term; at 0 it is not computed.
        over: ``"class"``, ``"branch"`` or ``"voxel"``; ``"branch"`` needs the numbers of
            :py:class:`monai_skelrec.TubeBranchesd` in the target.
        gamma: 0 for none; the larger, the more what is missed most counts.
        log: minus the logarithm of recall instead of one minus recall.
        sigmoid: independent channels instead of exclusive classes, as in ``loss``.
        ignore_index: label of voxels that no term counts, as in ``loss``.

    Attributes:
        terms: those of ``loss``, and ``focused_recall`` of the full-resolution head before it is weighted, without
            gradient.
        ramp: from 0 to 1, set by :py:class:`monai_skelrec.handlers.WarmUp`; at 0 the term is not computed.

    Raises:
        ValueError: when ``lambda_recall`` or ``gamma`` is negative, or ``over`` is none of the above.
    """

    def __init__(
        self,
        loss: torch.nn.Module,
        lambda_recall: float = 1.0,
        over: str = "class",
        gamma: float = 0.0,
        log: bool = False,
        sigmoid: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        refuse_negative(lambda_recall=lambda_recall, gamma=gamma)
        if over not in _OVER:
            raise ValueError(f"over must be one of {', '.join(_OVER)}, got {over}.")
        self.loss = loss
        self.lambda_recall = float(lambda_recall)
        self.over = over
        self.gamma = float(gamma)
        self.log = log
        self.sigmoid = sigmoid
        self.ignore_index = ignore_index
        self.ramp = 1.0
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: logits, shape BNH[WD], or one tensor a head, full resolution first.
            target: as :py:class:`monai_skelrec.DiceCESkeletonRecallLoss` takes it. With ``over="branch"`` the numbers
                of the branches follow on the channel axis, one channel for each of the tube.

        Returns:
            Scalar, lower is better. float32 for half precision.

        Raises:
            ValueError: when branches are asked for and ``target`` has no channels for them, there are several heads
                and no deep supervision in ``loss``, and what ``loss`` raises.
        """
        target = target.as_tensor() if isinstance(target, MetaTensor) else target
        single = isinstance(input, torch.Tensor)
        heads = [input] if isinstance(input, torch.Tensor) else list(input)
        heads = [head.as_tensor() if isinstance(head, MetaTensor) else head for head in heads]
        label, tube, branches = self._parts(target, heads[0].shape[1])
        value: torch.Tensor = self.loss(heads[0] if single else heads, target[:, : label.shape[1] + tube.shape[1]])
        self.terms = dict(getattr(self.loss, "terms", {}))
        if self.ramp > 0 and self.lambda_recall > 0:
            weights = [1.0] if single else self._weights_of(len(heads))
            units = _units(heads[0].shape[1], label, tube, branches, self.over, self.sigmoid, self.ignore_index)
            terms = [_missed(head, tube.shape, units, self.gamma, self.log, self.sigmoid) for head in heads]
            self.terms["focused_recall"] = terms[0].detach()
            for weight, term in zip(weights, terms):
                value = value + self.ramp * self.lambda_recall * weight * term
        return value

    def _parts(self, target: torch.Tensor, n_classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Label, tube and branches."""
        channels = target.shape[1]
        labels = label_channels(target, n_classes, self.sigmoid, stacked=3 if self.over == "branch" else 2)
        if self.over != "branch":
            return target[:, :labels], target[:, labels:], None
        if channels not in (3, 1 + 2 * n_classes, 3 * labels):
            raise ValueError(
                f"target must have label, tubed skeleton and the numbers of its branches on the channel axis, got "
                f"{channels} channels; TubeBranchesd after TubedSkeletond numbers them, ConcatItemsd stacks them."
            )
        tubes = (channels - labels) // 2
        return target[:, :labels], target[:, labels : labels + tubes], target[:, labels + tubes :]

    def _weights_of(self, n_heads: int) -> list[float]:
        for loss in self.loss.modules():
            if isinstance(loss, TubeDeepSupervisionLoss):
                return loss.weights_of(n_heads)
        raise ValueError(f"{n_heads} heads need a TubeDeepSupervisionLoss in the loss, which weighs them.")


def focused_recall(
    input: torch.Tensor,
    label: torch.Tensor,
    tube: torch.Tensor,
    branches: torch.Tensor | None = None,
    over: str = "class",
    gamma: float = 0.0,
    log: bool = False,
    sigmoid: bool = False,
    ignore_index: int | None = None,
) -> torch.Tensor:
    r"""How much of each tubed skeleton is missed, counted unit by unit.

    .. math::
        M = \frac{1}{B} \sum_b \frac{1}{\max(1, |C_b|)} \sum_{c \in C_b}
        \frac{1}{|U_{bc}|} \sum_{u \in U_{bc}} (1 - r_u)^\gamma\, \ell(r_u), \qquad
        r_u = \frac{1}{|u|} \sum_{i \in u} p_{bci}, \qquad \ell(r) = 1 - r \text{ or } -\log r

    over the classes :math:`C_b` that have a tube, whose voxels form the units :math:`U_{bc}`:

    - ``"class"``, the tube as one: with :math:`\gamma = 0` and without logarithm this is skeleton recall without
      smoothing, whose gradient by :math:`p` is the same on every voxel. The logarithm divides it by recall, so a class
      counts more the more of it is missed.
    - ``"branch"``: a short branch weighs as much as a long one, a thin one as much as a thick one, also where all
      vessels are one class. The logarithm or :math:`\gamma` turns to the branches that are missed.
    - ``"voxel"``: :math:`\gamma` or the logarithm (cross-entropy on the tube) turns to the gaps.

    Args:
        input: logits, shape BNh[wd]; coarser than the tube, voxel :math:`v` is read at its block
            :math:`\lfloor v h / H \rfloor`, as in :py:func:`monai_skelrec.pool_target`.
        label: where voxels to ignore are marked, class indices, shape B1H[WD], or regions, BNH[WD], with ``sigmoid``.
        tube: tubed skeleton; class indices, shape B1H[WD], or 0 and 1, shape BNH[WD].
        branches: numbers of the branches, any integers, shape of ``tube``; only for ``over="branch"``.
        over: see above.
        gamma: see above.
        log: see above.
        sigmoid: independent channels instead of exclusive classes.
        ignore_index: label of voxels that do not count.

    Returns:
        Scalar of at least 0, without logarithm at most 1; lower is better; 0 without any tube.

    Raises:
        ValueError: when branches are asked for and not given.

    Example:
        >>> tube = torch.tensor([0, 1, 1, 1]).view(1, 1, 1, 4)
        >>> focused_recall(torch.zeros(1, 2, 1, 4), tube, tube, log=True)  # -log(1/2)
        tensor(0.6931)
    """
    units = _units(input.shape[1], label, tube, branches, over, sigmoid, ignore_index)
    return _missed(input, tube.shape, units, gamma, log, sigmoid)


def _units(
    n_classes: int,
    label: torch.Tensor,
    tube: torch.Tensor,
    branches: torch.Tensor | None,
    over: str,
    sigmoid: bool,
    ignore_index: int | None,
) -> _Units:
    found = (tube != 0) & counted(label, ignore_index)
    multi_hot = tube.shape[1] == n_classes
    if multi_hot and not (sigmoid and label.shape[1] == n_classes):
        found = without_background(found)  # channel 0 of exclusive classes is "no tube"
    item, first, *voxel = found.nonzero(as_tuple=True)
    at = (item, first, *voxel)
    channel = first if multi_hot else tube[at].long()
    if over == "voxel":
        return _Units(item, channel, voxel, torch.arange(len(item), device=item.device), item, channel)
    place, numbers = item * n_classes + channel, 1
    if over == "branch":
        if branches is None:
            raise ValueError("over='branch' needs the numbers of the branches, see tube_branches.")
        number = branches[at].long()
        numbers = int(number.max()) + 1 if len(number) else 1
        place = place * numbers + number
    place, unit = place.unique(return_inverse=True)
    place = place // numbers
    return _Units(item, channel, voxel, unit, place // n_classes, place % n_classes)


def _missed(
    input: torch.Tensor, full: Sequence[int], units: _Units, gamma: float, log: bool, sigmoid: bool
) -> torch.Tensor:
    item, channel, voxel, unit, unit_item, unit_channel = units
    block = [v * m // n for v, m, n in zip(voxel, input.shape[2:], full[2:])]
    log_p = log_probabilities(input, item, channel, block, sigmoid)
    log_r = _log_mean(log_p, unit, len(unit_item))
    # above 0, where the derivative of a power below 1 is no number
    miss = (-torch.expm1(log_r)).clamp(min=torch.finfo(log_r.dtype).tiny)
    value = miss**gamma * (-log_r if log else miss)
    return (value * shares(unit_item, unit_channel, input.shape)).sum().to(term_dtype(input))


def _log_mean(log_p: torch.Tensor, unit: torch.Tensor, n_units: int) -> torch.Tensor:
    """Logarithm of the mean probability of each unit; finite where all of it is missed with certainty."""
    size = torch.bincount(unit, minlength=n_units).double()
    top = log_p.new_zeros(n_units).scatter_reduce(0, unit, log_p.detach(), "amax", include_self=False)
    total = log_p.new_zeros(n_units).index_add(0, unit, (log_p - top[unit]).exp())
    return total.log() + top - size.log()
