"""Logits, label and tubed skeleton -> share of pieces that are wrong: every gap and every false piece counts once.

No skeleton is differentiated: pieces are found on the processor without a gradient, and of the logits only the voxels
of wrong pieces are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from skimage.measure import label as number_components
from torch.nn.modules.loss import _Loss

from .chunks import term_dtype
from .skeletons import tubed_skeleton
from .tube_entries import counted, log_probabilities

__all__ = ["PieceErrorLoss", "piece_error"]


class PieceErrorLoss(_Loss):
    r"""Any loss of this package plus the share of pieces that are wrong.

    .. math::
        L + ramp \cdot \lambda_{pieces}\, E

    with :math:`E` of :py:func:`piece_error`. Dice, cross-entropy and skeleton recall count voxels, so a gap of two
    voxels or a speck of five hardly counts; the errors of Betti numbers are made of them. The term is for the
    full-resolution head; ``loss`` may be a :py:class:`monai_skelrec.TubeDeepSupervisionLoss`, which sees all heads.
    Pieces are of use once a network finds most of the vessels: set ``warm_up`` of the training.

    Args:
        loss: Dice and cross-entropy, with or without skeleton recall.
        lambda_pieces: weight of the term; at 0 it is not computed.
        tolerance: see :py:func:`piece_error`.
        margin: see :py:func:`piece_error`.
        sigmoid: independent channels instead of exclusive classes, as in ``loss``.
        ignore_index: label of voxels that no term counts, as in ``loss``.

    Attributes:
        terms: those of ``loss``, and ``piece_error`` before it is weighted, without gradient.
        ramp: from 0 to 1, set by :py:class:`monai_skelrec.handlers.WarmUp`; at 0 the term is not computed.

    Raises:
        ValueError: when ``lambda_pieces`` or ``tolerance`` is negative, or ``margin`` is not from 0 to below one half.
    """

    def __init__(
        self,
        loss: torch.nn.Module,
        lambda_pieces: float = 1.0,
        tolerance: int = 2,
        margin: float = 0.3,
        sigmoid: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"lambda_pieces": lambda_pieces, "tolerance": tolerance}.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        if not 0 <= margin < 0.5:
            raise ValueError(f"margin must be at least 0 and below 0.5, got {margin}.")
        self.loss = loss
        self.lambda_pieces = float(lambda_pieces)
        self.tolerance = tolerance
        self.margin = float(margin)
        self.sigmoid = sigmoid
        self.ignore_index = ignore_index
        self.ramp = 1.0
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: logits, shape BNH[WD], or one tensor a head, full resolution first.
            target: as :py:class:`monai_skelrec.DiceCESkeletonRecallLoss` takes it.

        Returns:
            Scalar, lower is better. float32 for half precision.

        Raises:
            ValueError: what ``loss`` raises.
        """
        target = target.as_tensor() if isinstance(target, MetaTensor) else target
        value: torch.Tensor = self.loss(input, target)
        self.terms = dict(getattr(self.loss, "terms", {}))
        if self.ramp > 0 and self.lambda_pieces > 0:
            head = input if isinstance(input, torch.Tensor) else input[0]
            head = head.as_tensor() if isinstance(head, MetaTensor) else head
            channels = head.shape[1] if self.sigmoid and target.shape[1] == 2 * head.shape[1] else 1
            label, tube = target[:, :channels], target[:, channels:]
            term = piece_error(head, label, tube, self.tolerance, self.margin, self.sigmoid, self.ignore_index)
            self.terms["piece_error"] = term.detach()
            value = value + self.ramp * self.lambda_pieces * term
        return value


def piece_error(
    input: torch.Tensor,
    label: torch.Tensor,
    tube: torch.Tensor,
    tolerance: int = 2,
    margin: float = 0.3,
    sigmoid: bool = False,
    ignore_index: int | None = None,
) -> torch.Tensor:
    r"""Share of pieces that are wrong, each weighted by how sure the network is of it.

    .. math::
        E = \frac{1}{B} \sum_b \frac{1}{\max(1, |C_b|)} \sum_{c \in C_b} \frac{1}{n_{bc}} \Big(
        \sum_{g \in G_{bc}} \frac{1}{|g|} \sum_{i \in g} (1 - p_{bci}) +
        \sum_{f \in F_{bc}} \frac{1}{|f|} \sum_{i \in f} p_{bci} \Big)

    Pieces are connected components, diagonal neighbours included, of three sets of voxels:

    - :math:`G`, **gaps**: the centreline of the tube where :math:`p < 1/2 + margin`;
    - the centreline that is found, the rest of it;
    - :math:`F`, **false pieces**: the prediction, :math:`p > 1/2 - margin`, farther than ``tolerance`` from the label,
      and components of the prediction that do not touch the label at all.

    :math:`n_{bc}` is the number of pieces of all three, :math:`C_b` are the classes that have any. A gap of two voxels
    counts as much as one of twenty, a speck as much as a false branch, a class that is not there as much as one that
    is missed; within a piece the gradient is shared out. How thick a vessel is, is left to the other terms.

    Args:
        input: logits, shape BNH[WD].
        label: class indices, shape B1H[WD], 0 background; or with ``sigmoid`` regions, 0 and 1, shape BNH[WD].
        tube: tubed skeleton; class indices, shape B1H[WD], or 0 and 1, shape BNH[WD].
        tolerance: L1, voxels.
        margin: from 0 to below one half. Above 0, pieces that are only just right or just not predicted count too, so
            that they do not come and go with the next step.
        sigmoid: independent channels instead of exclusive classes.
        ignore_index: label of voxels that do not count.

    Returns:
        Scalar from 0 to 1, lower is better; 0 without any piece.
    """
    with torch.no_grad():
        kinds = _find(input, label, tube, tolerance, margin, sigmoid, ignore_index)
        weights = [torch.from_numpy(weight).to(input.device) for weight in _weights(kinds, *input.shape[:2])]
        gaps, false = (
            tuple(torch.from_numpy(axis).to(input.device) for axis in kind.where) for kind in (kinds.gaps, kinds.false)
        )
    item, channel, *voxel = map(torch.cat, zip(gaps, false, strict=True))
    p = log_probabilities(input, item, channel, voxel, sigmoid).exp()
    missed, excess = 1 - p[: len(gaps[0])], p[len(gaps[0]) :]
    return ((missed * weights[0]).sum() + (excess * weights[1]).sum()).to(term_dtype(input))


class _Pieces(NamedTuple):
    """Connected components of a batch: the first two voxel by voxel, the others piece by piece."""

    where: tuple[np.ndarray, ...]  # item, channel, and an array an axis
    piece: np.ndarray
    item: np.ndarray
    channel: np.ndarray


class _Kinds(NamedTuple):
    gaps: _Pieces
    false: _Pieces
    found: _Pieces


def _find(
    input: torch.Tensor,
    label: torch.Tensor,
    tube: torch.Tensor,
    tolerance: int,
    margin: float,
    sigmoid: bool,
    ignore_index: int | None,
) -> _Kinds:
    n_classes = input.shape[1]
    regions = sigmoid and label.shape[1] == n_classes
    keep = counted(label, ignore_index)
    wanted, tubes = (_values(torch.where(keep, each, 0), n_classes, regions) for each in (label, tube))
    predicted = (_predicted(input, 0.5 - margin, sigmoid, regions) * keep).cpu().numpy()
    is_false = _is_false(predicted, wanted, tolerance)
    centerline = _centerline(tubes)
    is_gap = _is_below(input, centerline, 0.5 + margin, sigmoid)
    return _Kinds(_pieces(centerline * is_gap), _pieces(predicted * is_false), _pieces(centerline * ~is_gap))


def _weights(kinds: _Kinds, n_items: int, n_classes: int) -> list[np.ndarray]:
    """Weight of each voxel of a gap and of a false piece."""
    number = np.zeros((n_items, n_classes), dtype=np.int64)
    for kind in kinds:
        np.add.at(number, (kind.item, kind.channel), 1)
    n_classes_there = (number > 0).sum(1)
    weights = []
    for kind in (kinds.gaps, kinds.false):
        size = np.bincount(kind.piece, minlength=len(kind.item))
        share = 1 / (n_items * n_classes_there[kind.item] * number[kind.item, kind.channel] * size)
        weights.append(share[kind.piece])
    return weights


def _pieces(values: np.ndarray) -> _Pieces:
    """Components of voxels of one value; ``values`` as :py:func:`_values` gives them."""
    numbers, total = _numbered(values)
    at = np.nonzero(numbers)
    piece, channel = numbers[at] - 1, values[at].astype(np.int64) - 1
    item_of, channel_of = np.zeros((2, total), dtype=np.int64)
    item_of[piece], channel_of[piece] = at[0], channel
    return _Pieces((at[0], channel, *at[2:]), piece, item_of, channel_of)


def _numbered(values: np.ndarray) -> tuple[np.ndarray, int]:
    """For each voxel the number of its component, from 1, 0 for none; and how many there are."""
    numbers, total = np.zeros(values.shape, dtype=np.int64), 0
    for item, channel in np.argwhere(values.reshape(*values.shape[:2], -1).any(2)):
        part, n_found = number_components(values[item, channel], return_num=True, connectivity=values.ndim - 2)
        numbers[item, channel] = np.where(part > 0, part + total, 0)
        total += n_found
    return numbers, total


def _values(positive: torch.Tensor, n_classes: int, regions: bool) -> np.ndarray:
    """One more than the channel that a voxel belongs to, 0 for none, shape BMH[WD]; M is 1 for class indices.

    Channel 0 of exclusive classes is background and belongs to nothing; that of ``regions`` is a region.
    """
    if positive.shape[1] == 1 and not (regions and n_classes == 1):
        values = torch.where(positive > 0, positive + 1, 0)
    else:
        channel = torch.arange(1, n_classes + 1, device=positive.device).view(1, -1, *[1] * (positive.ndim - 2))
        values = torch.where(positive > 0, channel, 0)
        if not regions:
            values[:, 0] = 0
    # the fewest bytes cross over to the processor
    return values.to(torch.uint8 if n_classes < 255 else torch.int32).cpu().numpy()


def _predicted(input: torch.Tensor, threshold: float, sigmoid: bool, regions: bool) -> torch.Tensor:
    """As :py:func:`_values`: channels above a probability; of exclusive classes the likeliest but background."""
    small = torch.uint8 if input.shape[1] < 255 else torch.int32
    odds = math.log(threshold / (1 - threshold))
    if sigmoid:
        channel = torch.arange(1, input.shape[1] + 1, device=input.device).view(1, -1, *[1] * (input.ndim - 2))
        found = torch.where(input > odds, channel, 0)
        if not regions:
            found[:, 0] = 0
        return found.to(small)
    # no class has the probability where its odds against background alone are too low: few voxels are left to look at
    item, *voxel = (input[:, 1:].amax(1) - input[:, 0] > odds).nonzero(as_tuple=True)
    p = input.movedim(1, -1)[(item, *voxel)].double().softmax(1)
    best, channel = p[:, 1:].max(1)
    found = torch.zeros_like(input[:, :1], dtype=small)
    found.movedim(1, -1)[(item, *voxel)] = torch.where(best > threshold, channel + 2, 0).to(small)[:, None]
    return found


def _centerline(tube: np.ndarray) -> np.ndarray:
    """The centreline of each tube, in the values of the tube."""
    lines = np.zeros_like(tube)
    for item, channel in np.argwhere(tube.reshape(*tube.shape[:2], -1).any(2)):
        lines[item, channel] = tubed_skeleton(tube[item, channel], radius=0)
    return lines


def _is_below(input: torch.Tensor, values: np.ndarray, threshold: float, sigmoid: bool) -> np.ndarray:
    """Whether a voxel has a value, and its channel a probability below the threshold."""
    at = np.nonzero(values)
    where = (at[0], values[at].astype(np.int64) - 1, *at[2:])
    item, channel, *voxel = (torch.from_numpy(axis).to(input.device) for axis in where)
    below = np.zeros(values.shape, dtype=bool)
    below[at] = (log_probabilities(input, item, channel, voxel, sigmoid).exp() < threshold).cpu().numpy()
    return below


def _is_false(predicted: np.ndarray, wanted: np.ndarray, tolerance: int) -> np.ndarray:
    """Whether a predicted voxel is far from its label, or of a component that does not touch it."""
    numbers, total = _numbered(predicted)
    touches = np.zeros(total + 1, dtype=bool)
    touches[numbers[(predicted == wanted) & (predicted > 0)]] = True
    # one that agrees with its label is near it
    disagrees = predicted * (predicted != wanted)
    item, first, *voxel = np.nonzero(disagrees)
    value = predicted[(item, first, *voxel)]
    beside = first if wanted.shape[1] > 1 else np.zeros_like(first)
    far = np.ones(len(item), dtype=bool)
    for offset in product(range(-tolerance, tolerance + 1), repeat=len(voxel)):
        if sum(map(abs, offset)) <= tolerance:
            # at the border this looks at a voxel that is nearer
            there = [np.clip(v + step, 0, size - 1) for v, step, size in zip(voxel, offset, predicted.shape[2:])]
            far &= wanted[(item, beside, *there)] != value
    is_false = (predicted > 0) & ~touches[numbers]
    is_false[(item, first, *voxel)] |= far
    return is_false
