"""Logits, label and tubed skeleton -> share of pieces that are wrong: every gap and every false piece counts once.

No skeleton is differentiated: pieces are found on the processor without a gradient, and of the logits only the voxels
of wrong pieces are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn.modules.loss import _Loss

from .chunks import term_dtype
from .skeletons import tubed_skeleton
from .tube_entries import counted, log_probabilities
from .voxels import connect_keys

__all__ = ["PieceErrorLoss", "piece_error"]

_GAP, _FALSE, _FOUND = range(3)


class PieceErrorLoss(_Loss):
    r"""Any loss of this package plus the share of pieces that are wrong.

    .. math::
        L + ramp \cdot \lambda_{pieces}\, E

    with :math:`E` of :py:func:`piece_error`. Dice, cross-entropy and skeleton recall count voxels, so a gap of two
    voxels or a speck of five hardly counts; the errors of Betti numbers are made of them. The term is for the
    full-resolution head; ``loss`` may be a :py:class:`monai_skelrec.TubeDeepSupervisionLoss`, which sees all heads.
    Pieces are of use once a network finds most of the vessels: set ``warm_up``. Where it never does, most of what it
    predicts is false, and to predict nothing is the quickest way to be rid of that: set ``balanced``, for which
    :math:`E` is multiplied by :math:`\bar p^2` too, the squared mean probability along all centrelines of the batch,
    without gradient, and 1 where there are none. The term steps back, further with everything that goes.

    Args:
        loss: Dice and cross-entropy, with or without skeleton recall.
        lambda_pieces: weight of the term; at 0 it is not computed.
        tolerance: see :py:func:`piece_error`.
        margin: see :py:func:`piece_error`.
        warm_up: first epochs of a training without the term; :py:class:`monai_skelrec.handlers.WarmUp` counts them.
        sigmoid: independent channels instead of exclusive classes, as in ``loss``.
        ignore_index: label of voxels that no term counts, as in ``loss``.
        balanced: see above and :py:func:`piece_error`.

    Attributes:
        terms: those of ``loss``, and ``piece_error`` before it is weighted, without gradient.
        ramp: from 0 to 1, set by :py:class:`monai_skelrec.handlers.WarmUp`; at 0 the term is not computed.

    Raises:
        ValueError: when ``lambda_pieces`` or ``warm_up`` is negative, ``tolerance`` is no whole number from 0,
            ``margin`` is not from 0 to below one half, or a loss within has another ``sigmoid`` or ``ignore_index``.
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
        balanced: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"lambda_pieces": lambda_pieces, "warm_up": warm_up}.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        _check(tolerance, margin)
        for within in loss.modules():
            for name, own in {"sigmoid": sigmoid, "ignore_index": ignore_index}.items():
                if getattr(within, name, own) != own:
                    raise ValueError(
                        f"{name} must be that of {type(within).__name__}, {getattr(within, name)}, got {own}."
                    )
        self.loss = loss
        self.lambda_pieces = float(lambda_pieces)
        self.tolerance = int(tolerance)
        self.margin = float(margin)
        self.balanced = balanced
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
            pieces = _find(head, label, tube, self.tolerance, self.margin, self.sigmoid, self.ignore_index)
            term = _share(head, pieces, self.sigmoid, self.balanced)
            self.terms["piece_error"] = term.detach()
            weight = self.lambda_pieces * (pieces.seen**2 if self.balanced else 1)
            value = value + self.ramp * weight * term
        return value


def piece_error(
    input: torch.Tensor,
    label: torch.Tensor,
    tube: torch.Tensor,
    tolerance: int = 4,
    margin: float = 0.3,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    balanced: bool = False,
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

    ``balanced`` divides the gaps by the number of pieces of the centreline, found or not, and the false pieces by the
    number of those and of the found, so that :math:`E` is the sum of two shares, to pieces what 1 - recall and
    1 - precision are to voxels: a thousand specks do not drown a gap then.

    Args:
        input: logits, shape BNH[WD].
        label: class indices, shape B1H[WD], 0 background; or with ``sigmoid`` regions, 0 and 1, shape BNH[WD].
        tube: tubed skeleton; class indices, shape B1H[WD], or 0 and 1, shape BNH[WD].
        tolerance: L1, voxels.
        margin: from 0 to below one half. Above 0, pieces that are only just right or just not predicted count too, so
            that they do not come and go with the next step.
        sigmoid: independent channels instead of exclusive classes.
        ignore_index: label of voxels that do not count; to their neighbours they are background.
        balanced: see above.

    Returns:
        Scalar from 0 to 1, with ``balanced`` to 2, lower is better; 0 without any piece.

    Raises:
        ValueError: when ``tolerance`` is no whole number from 0, or ``margin`` not from 0 to below one half.
    """
    _check(tolerance, margin)
    pieces = _find(input, label, tube, tolerance, margin, sigmoid, ignore_index)
    return _share(input, pieces, sigmoid, balanced)


def _check(tolerance: int, margin: float) -> None:
    if tolerance < 0 or tolerance != int(tolerance):
        raise ValueError(f"tolerance must be a whole number of voxels, at least 0, got {tolerance}.")
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin must be at least 0 and below 0.5, got {margin}.")


class _Entries(NamedTuple):
    """A list of voxels, each of one item and one channel; time and memory grow with it, not with the volume."""

    item: np.ndarray
    channel: np.ndarray
    voxel: tuple[np.ndarray, ...]  # an array an axis

    def where(self, chosen: np.ndarray | slice) -> _Entries:
        """Those ``chosen``, by booleans, their numbers or a slice."""
        return _Entries(self.item[chosen], self.channel[chosen], tuple(axis[chosen] for axis in self.voxel))

    def places(self, values: np.ndarray) -> tuple[Any, ...]:
        """Where they lie in an array of shape BMH[WD]; M may be 1."""
        return (self.item, self.channel if values.shape[1] > 1 else 0, *self.voxel)

    def read(self, values: np.ndarray) -> np.ndarray:
        """What such an array holds there."""
        read: np.ndarray = values[self.places(values)]
        return read

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Item, channel and voxel, as :py:func:`log_probabilities` takes them."""
        item, channel, *voxel = (torch.from_numpy(axis).to(device) for axis in (self.item, self.channel, *self.voxel))
        return item, channel, voxel


class _Pieces(NamedTuple):
    """The pieces of a batch, and the voxels of those that are wrong."""

    item: np.ndarray  # of each piece, as the next two
    channel: np.ndarray
    kind: np.ndarray  # of the three above
    where: _Entries
    piece: np.ndarray  # of each entry
    seen: float  # mean probability along the centrelines


def _share(input: torch.Tensor, pieces: _Pieces, sigmoid: bool, balanced: bool) -> torch.Tensor:
    """:py:func:`piece_error` of pieces that are found; the gradient is its own."""
    weight = torch.from_numpy(_weights(pieces, input.shape[0], input.shape[1], balanced)).to(input.device)
    is_gap = torch.from_numpy(pieces.kind[pieces.piece] == _GAP).to(input.device)
    p = log_probabilities(input, *pieces.where.tensors(input.device), sigmoid).exp()
    return (torch.where(is_gap, 1 - p, p) * weight).sum().to(term_dtype(input))


@torch.no_grad()
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
    keep = None if ignore_index is None else counted(label, ignore_index)
    masks = (label, tube) if keep is None else (torch.where(keep, mask, 0) for mask in (label, tube))
    wanted, tubes = (_values(mask, n_classes, regions) for mask in masks)

    false = _false(*_predicted(input, keep, 0.5 - margin, sigmoid, regions), wanted, tolerance)
    line = _centerline(tubes)
    p = log_probabilities(input, *line.tensors(input.device), sigmoid).exp().cpu().numpy()
    kinds = (np.where(p >= 0.5 + margin, _FOUND, _GAP), np.full(len(false.item), _FALSE))

    number, more = (_components(e, kind, wanted.shape[2:]) for e, kind in zip((line, false), kinds, strict=True))
    piece, kind = np.concatenate([number, more + number.max(initial=-1) + 1]), np.concatenate(kinds)
    item, channel = (np.concatenate(pair) for pair in ((line.item, false.item), (line.channel, false.channel)))
    both = _Entries(item, channel, tuple(map(np.concatenate, zip(line.voxel, false.voxel, strict=True))))
    items, channels, kinds_of_pieces = np.zeros((3, piece.max(initial=-1) + 1), dtype=np.int64)
    items[piece], channels[piece], kinds_of_pieces[piece] = item, channel, kind
    wrong = kind != _FOUND
    seen = float(p.mean()) if p.size else 1.0
    return _Pieces(items, channels, kinds_of_pieces, both.where(wrong), piece[wrong], seen)


def _weights(pieces: _Pieces, n_items: int, n_classes: int, balanced: bool) -> np.ndarray:
    """Weight of each voxel, so that their sum is the mean over pieces, then classes that are there, then items."""
    number = np.zeros((n_items, n_classes, 3), dtype=np.int64)
    np.add.at(number, (pieces.item, pieces.channel, pieces.kind), 1)
    n_there = number.any(2).sum(1)[pieces.item]
    among = number[pieces.item, pieces.channel]
    if balanced:
        of = among.sum(1) - np.where(pieces.kind == _FALSE, among[:, _GAP], among[:, _FALSE])
    else:
        of = among.sum(1)
    size = np.bincount(pieces.piece, minlength=len(pieces.item)).clip(1)
    return (1 / (n_items * n_there * of * size))[pieces.piece]


def _components(entries: _Entries, part: np.ndarray, spatial: tuple[int, ...]) -> np.ndarray:
    """Number of the component of each entry, from 0; those of other items, channels or parts do not connect."""
    key = entries.item * (entries.channel.max(initial=0) + 1) + entries.channel
    for axis, size in zip(entries.voxel, spatial, strict=True):
        key = key * (size + 1) + axis
    steps = np.cumprod([1, *(size + 1 for size in spatial[:0:-1])])[::-1]
    order = np.argsort(key, kind="stable")
    number = np.empty(len(key), dtype=np.int64)
    number[order] = connect_keys(key[order], steps, part[order])
    return number


def _values(positive: torch.Tensor, n_classes: int, regions: bool) -> np.ndarray:
    """One more than the channel that a voxel belongs to, 0 for none, shape BMH[WD]; M is 1 for class indices.

    Channel 0 of exclusive classes is background and belongs to nothing; that of ``regions`` is a region.
    """
    # the fewest bytes cross over to the processor
    dtype = torch.uint8 if n_classes < 255 else torch.int32
    if positive.shape[1] == 1 and not (regions and n_classes == 1):
        values = positive.to(dtype)
        return (values + (values > 0)).cpu().numpy()
    channel = torch.arange(1, n_classes + 1, dtype=dtype, device=positive.device)
    values = (positive > 0) * channel.view(1, -1, *[1] * (positive.ndim - 2))
    if not regions:
        values[:, 0] = 0
    return values.cpu().numpy()


def _predicted(
    input: torch.Tensor, keep: torch.Tensor | None, threshold: float, sigmoid: bool, regions: bool
) -> tuple[_Entries, np.ndarray]:
    """Where a channel is above a probability, of exclusive classes the likeliest but background; and how probable."""
    odds = math.log(threshold / (1 - threshold))
    if sigmoid:
        above = input > odds if keep is None else (input > odds) & keep
        if not regions:
            above[:, 0] = False
        item, channel, *voxel = above.nonzero(as_tuple=True)
        p = input[(item, channel, *voxel)].double().sigmoid()
    else:
        # no class has the probability where its odds against background alone are too low: few voxels are left
        above = input[:, 1:].amax(1) - input[:, 0] > odds
        item, *voxel = (above if keep is None else above & keep[:, 0]).nonzero(as_tuple=True)
        p, channel = input.movedim(1, -1)[(item, *voxel)].double().softmax(1)[:, 1:].max(1)
        chosen = p > threshold
        item, channel, p, *voxel = (each[chosen] for each in (item, channel + 1, p, *voxel))
    axes = [axis.cpu().numpy() for axis in (item, channel, *voxel)]
    return _Entries(axes[0], axes[1], tuple(axes[2:])), p.cpu().numpy()


def _centerline(tube: np.ndarray) -> _Entries:
    """The centrelines of tubes."""
    lines = np.zeros_like(tube)
    for item, channel in np.argwhere(tube.reshape(*tube.shape[:2], -1).any(2)):
        lines[item, channel] = tubed_skeleton(tube[item, channel], radius=0)
    item, place, *voxel = np.nonzero(lines)
    return _Entries(item, lines[(item, place, *voxel)].astype(np.int64) - 1, tuple(voxel))


def _false(predicted: _Entries, p: np.ndarray, wanted: np.ndarray, tolerance: int) -> _Entries:
    """What of a prediction is far from its label, or of a component, at either threshold, that does not touch it."""
    is_right = predicted.read(wanted) == predicted.channel + 1
    is_false = _is_far(predicted, is_right, wanted, tolerance)
    for chosen in (slice(None), p > 0.5):
        is_false[chosen] |= _is_alone(predicted.where(chosen), is_right[chosen], wanted.shape[2:])
    return predicted.where(is_false)


def _is_alone(predicted: _Entries, is_right: np.ndarray, spatial: tuple[int, ...]) -> np.ndarray:
    """Whether each predicted entry is of a component that shares none with its label."""
    number = _components(predicted, np.zeros(len(is_right), dtype=np.int64), spatial)
    is_alone = np.ones(number.max(initial=-1) + 1, dtype=bool)
    is_alone[number[is_right]] = False
    alone: np.ndarray = is_alone[number]
    return alone


def _is_far(predicted: _Entries, is_right: np.ndarray, wanted: np.ndarray, tolerance: int) -> np.ndarray:
    """Whether each predicted entry is farther than ``tolerance`` from its label."""
    left = np.flatnonzero(~is_right)
    # with a frame of nothing around it, every neighbour of a voxel is a fixed number of voxels away
    framed = np.ascontiguousarray(np.pad(wanted, [(0, 0), (0, 0), *[(tolerance, tolerance)] * len(predicted.voxel)]))
    within = predicted._replace(voxel=tuple(axis + tolerance for axis in predicted.voxel))
    values, here = framed.ravel(), np.ravel_multi_index(within.places(framed), framed.shape)
    offsets = np.array(list(product(range(-tolerance, tolerance + 1), repeat=len(predicted.voxel))))
    steps = offsets @ (np.array(framed.strides[2:]) // framed.itemsize)
    for distance in range(1, tolerance + 1):
        is_near, at, own = np.zeros(len(left), dtype=bool), here[left], predicted.channel[left] + 1
        for step in steps[np.abs(offsets).sum(1) == distance].tolist():
            is_near |= values[at + step] == own
        left = left[~is_near]
    is_far = np.zeros(len(is_right), dtype=bool)
    is_far[left] = True
    return is_far
