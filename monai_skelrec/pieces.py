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

_GAP, _FALSE, _FOUND = range(3)


class PieceErrorLoss(_Loss):
    r"""Any loss of this package plus the share of pieces that are wrong.

    .. math::
        L + ramp \cdot \lambda_{pieces}\, E

    with :math:`E` of :py:func:`piece_error`. Dice, cross-entropy and skeleton recall count voxels, so a gap of two
    voxels or a speck of five hardly counts; the errors of Betti numbers are made of them. The term is for the
    full-resolution head; ``loss`` may be a :py:class:`monai_skelrec.TubeDeepSupervisionLoss`, which sees all heads.
    Pieces are of use once a network finds most of the vessels: set ``warm_up``.

    Args:
        loss: Dice and cross-entropy, with or without skeleton recall.
        lambda_pieces: weight of the term; at 0 it is not computed.
        tolerance: see :py:func:`piece_error`.
        margin: see :py:func:`piece_error`.
        warm_up: first epochs of a training without the term; :py:class:`monai_skelrec.handlers.WarmUp` counts them.
        sigmoid: independent channels instead of exclusive classes, as in ``loss``.
        ignore_index: label of voxels that no term counts, as in ``loss``.

    Attributes:
        terms: those of ``loss``, and ``piece_error`` before it is weighted, without gradient.
        ramp: from 0 to 1, set by :py:class:`monai_skelrec.handlers.WarmUp`; at 0 the term is not computed.

    Raises:
        ValueError: when ``lambda_pieces``, ``tolerance`` or ``warm_up`` is negative, ``margin`` is not from 0 to below
            one half, or a loss within has another ``sigmoid`` or ``ignore_index``.
    """

    def __init__(
        self,
        loss: torch.nn.Module,
        lambda_pieces: float = 1.0,
        tolerance: int = 4,
        margin: float = 0.3,
        warm_up: int = 0,
        sigmoid: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"lambda_pieces": lambda_pieces, "tolerance": tolerance, "warm_up": warm_up}.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        if not 0 <= margin < 0.5:
            raise ValueError(f"margin must be at least 0 and below 0.5, got {margin}.")
        for within in loss.modules():
            for name, own in {"sigmoid": sigmoid, "ignore_index": ignore_index}.items():
                if getattr(within, name, own) != own:
                    raise ValueError(
                        f"{name} must be that of {type(within).__name__}, {getattr(within, name)}, got {own}."
                    )
        self.loss = loss
        self.lambda_pieces = float(lambda_pieces)
        self.tolerance = tolerance
        self.margin = float(margin)
        self.warm_up = warm_up
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
    tolerance: int = 4,
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
    - :math:`F`, **false pieces**: the prediction, :math:`p > 1/2 - margin` and of exclusive classes only the likeliest
      but background, farther than ``tolerance`` from the label; and components of the prediction that share no voxel
      with the label, however near, be they alone at :math:`p > 1/2 - margin` or where :math:`p > 1/2`.

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
        ignore_index: label of voxels that do not count; to their neighbours they are background.

    Returns:
        Scalar from 0 to 1, lower is better; 0 without any piece.
    """
    with torch.no_grad():
        pieces = _find(input, label, tube, tolerance, margin, sigmoid, ignore_index)
        weight = torch.from_numpy(_weights(pieces, *input.shape[:2])).to(input.device)
        item, channel, *voxel = (torch.from_numpy(axis).to(input.device) for axis in pieces.where)
        is_gap = torch.from_numpy(pieces.kind[pieces.piece] == _GAP).to(input.device)
    p = log_probabilities(input, item, channel, voxel, sigmoid).exp()
    return (torch.where(is_gap, 1 - p, p) * weight).sum().to(term_dtype(input))


class _Pieces(NamedTuple):
    """The pieces of a batch, and the voxels of those that are wrong."""

    item: np.ndarray  # of each piece, as the next two
    channel: np.ndarray
    kind: np.ndarray  # of the three above
    where: tuple[np.ndarray, ...]  # of each voxel: item, channel, and an array an axis
    piece: np.ndarray  # of each voxel


def _find(
    input: torch.Tensor,
    label: torch.Tensor,
    tube: torch.Tensor,
    tolerance: int,
    margin: float,
    sigmoid: bool,
    ignore_index: int | None,
) -> _Pieces:
    n_classes = input.shape[1]
    regions = sigmoid and label.shape[1] == n_classes
    keep = counted(label, ignore_index)
    masks = (label, tube, *_predicted(input, sorted({0.5 - margin, 0.5}), sigmoid))
    wanted, tubes, predicted, *sure = (_values(torch.where(keep, mask, 0), n_classes, regions) for mask in masks)
    is_false = _is_far(predicted, wanted, tolerance)
    for each in (predicted, *sure):
        is_false |= _is_alone(each, wanted)
    false = np.where(is_false, predicted.astype(np.int32) * 3 + _FALSE, 0)
    at, channel = _centerline(tubes)
    where = [torch.from_numpy(axis).to(input.device) for axis in (at[0], channel, *at[2:])]
    is_found = log_probabilities(input, where[0], where[1], where[2:], sigmoid).exp() >= 0.5 + margin
    lines = np.zeros(tubes.shape, dtype=np.int32)
    lines[at] = (channel + 1) * 3 + np.where(is_found.cpu().numpy(), _FOUND, _GAP)

    # a neighbour of another class or kind is another piece
    code = np.concatenate([lines, false], axis=1)
    numbers, total = _numbered(code)
    at = np.nonzero(numbers)
    piece, code = numbers[at] - 1, code[at]
    items, codes = np.zeros((2, total), dtype=np.int64)
    items[piece], codes[piece] = at[0], code
    wrong = code % 3 != _FOUND
    entries = (at[0], code.astype(np.int64) // 3 - 1, *at[2:])
    return _Pieces(items, codes // 3 - 1, codes % 3, tuple(axis[wrong] for axis in entries), piece[wrong])


def _weights(pieces: _Pieces, n_items: int, n_classes: int) -> np.ndarray:
    """Weight of each voxel, so that their sum is the mean over pieces, then classes that are there, then items."""
    number = np.zeros((n_items, n_classes), dtype=np.int64)
    np.add.at(number, (pieces.item, pieces.channel), 1)
    n_there = (number > 0).sum(1)[pieces.item]
    size = np.bincount(pieces.piece, minlength=len(pieces.item)).clip(1)
    return (1 / (n_items * n_there * number[pieces.item, pieces.channel] * size))[pieces.piece]


def _numbered(values: np.ndarray) -> tuple[np.ndarray, int]:
    """For each voxel the number of its component, from 1, 0 for none; and how many there are."""
    numbers, total = np.zeros(values.shape, dtype=np.int32), 0
    for item, channel in np.argwhere(values.reshape(*values.shape[:2], -1).any(2)):
        part, n_found = number_components(values[item, channel], return_num=True, connectivity=values.ndim - 2)
        np.add(part, total, out=numbers[item, channel], where=part > 0, casting="unsafe")
        total += n_found
    return numbers, total


def _values(positive: torch.Tensor, n_classes: int, regions: bool) -> np.ndarray:
    """One more than the channel that a voxel belongs to, 0 for none, shape BMH[WD]; M is 1 for class indices.

    Channel 0 of exclusive classes is background and belongs to nothing; that of ``regions`` is a region.
    """
    if positive.shape[1] == 1 and not (regions and n_classes == 1):
        values = torch.where(positive > 0, positive.long() + 1, 0)
    else:
        channel = torch.arange(1, n_classes + 1, device=positive.device).view(1, -1, *[1] * (positive.ndim - 2))
        values = torch.where(positive > 0, channel, 0)
        if not regions:
            values[:, 0] = 0
    # the fewest bytes cross over to the processor
    return values.to(torch.uint8 if n_classes < 255 else torch.int32).cpu().numpy()


def _predicted(input: torch.Tensor, thresholds: Sequence[float], sigmoid: bool) -> list[torch.Tensor]:
    """Channels above each of rising thresholds as booleans; of exclusive classes the likeliest as an index, or 0."""
    if sigmoid:
        return [input > _odds(threshold) for threshold in thresholds]
    # no class has the probability where its odds against background alone are too low: few voxels are left to look at
    item, *voxel = (input[:, 1:].amax(1) - input[:, 0] > _odds(thresholds[0])).nonzero(as_tuple=True)
    p = input.movedim(1, -1)[(item, *voxel)].double().softmax(1)
    best, channel = p[:, 1:].max(1)
    found = []
    for threshold in thresholds:
        found.append(torch.zeros_like(input[:, :1], dtype=torch.int32))
        index = torch.where(best > threshold, channel + 1, 0)
        found[-1].movedim(1, -1)[(item, *voxel)] = index[:, None].to(torch.int32)
    return found


def _odds(p: float) -> float:
    """Logarithm of the odds of a probability."""
    return math.log(p / (1 - p))


def _centerline(tube: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Where the centrelines of tubes are, and the channel of each voxel."""
    lines = np.zeros_like(tube)
    for item, channel in np.argwhere(tube.reshape(*tube.shape[:2], -1).any(2)):
        lines[item, channel] = tubed_skeleton(tube[item, channel], radius=0)
    at = np.nonzero(lines)
    return at, lines[at].astype(np.int64) - 1


def _is_alone(predicted: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether a predicted voxel is of a component that shares none with its label."""
    numbers, total = _numbered(predicted)
    is_alone = np.ones(total + 1, dtype=bool)
    is_alone[numbers[(predicted == wanted) | (predicted == 0)]] = False
    alone: np.ndarray = is_alone[numbers]
    return alone


def _is_far(predicted: np.ndarray, wanted: np.ndarray, tolerance: int) -> np.ndarray:
    """Whether a predicted voxel is farther than ``tolerance`` from its label."""
    # one that agrees with its label is near it
    item, first, *voxel = np.nonzero(predicted * (predicted != wanted))
    value = predicted[(item, first, *voxel)]
    beside = first if wanted.shape[1] > 1 else np.zeros_like(first)
    left = np.arange(len(item))
    offsets = [np.array(step) for step in product(range(-tolerance, tolerance + 1), repeat=len(voxel))]
    for distance in range(1, tolerance + 1):
        is_near = np.zeros(len(left), dtype=bool)
        for offset in offsets:
            if np.abs(offset).sum() == distance:
                # at the border this looks at a voxel that is nearer
                there = [
                    np.clip(v[left] + step, 0, size - 1) for v, step, size in zip(voxel, offset, predicted.shape[2:])
                ]
                is_near |= wanted[(item[left], beside[left], *there)] == value[left]
        left = left[~is_near]
    is_far = np.zeros(predicted.shape, dtype=bool)
    is_far[tuple(axis[left] for axis in (item, first, *voxel))] = True
    return is_far
