"""Logits, label and tubed skeleton -> what skeleton recall does not see: false branches, and the worst point of a tube.

Experimental: whether it helps is for a comparison of losses to say, see ``bundle/docs/comparing.md``. Both terms look
at thin lines only, so they read a few thousand voxels of a patch; no skeleton is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn.modules.loss import _Loss

from .chunks import term_dtype
from .skeletons import skeleton, tubed_skeleton
from .tube_entries import counted, log_probabilities, shares, without_background

__all__ = ["ConnectedTubesLoss", "false_tube", "weakest_link"]

_Entries = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]  # item, channel, and a tensor an axis


class ConnectedTubesLoss(_Loss):
    r"""Any loss of this package plus a precision twin of skeleton recall and a term that seeks gaps. Experimental.

    .. math::
        L + ramp \cdot (\lambda_{precision}\, F + \lambda_{link}\, W)

    with :math:`F` of :py:func:`false_tube`, which punishes the branches that recall gets for free, and :math:`W` of
    :py:func:`weakest_link`, whose gradient goes to the locally worst points of a tube, where recall's is equal
    everywhere. Both are for the full-resolution head; ``loss`` may be a
    :py:class:`monai_skelrec.TubeDeepSupervisionLoss`, which sees all heads.

    Args:
        loss: Dice, cross-entropy and skeleton recall.
        lambda_precision: weight of the precision twin; at 0 it is not computed.
        lambda_link: weight of the weakest link; at 0 it is not computed.
        radius: of the tube around the predicted centreline, L1, voxels.
        tolerance: distance from the label, L1, voxels, up to which a predicted tube is not false.
        window: voxels along each axis in which only the worst point of a centreline counts, odd.
        sigmoid: independent channels instead of exclusive classes, as in ``loss``.
        ignore_index: label of voxels that no term counts, as in ``loss``.

    Attributes:
        terms: those of ``loss``, and ``false_tube`` and ``weakest_link`` before they are weighted, without gradient.
        ramp: from 0 to 1, set by :py:class:`monai_skelrec.handlers.WarmUp`; at 0 neither term is computed.

    Raises:
        ValueError: when a weight, the radius or the tolerance is negative, or the window is no odd number from 1.
    """

    def __init__(
        self,
        loss: torch.nn.Module,
        lambda_precision: float = 1.0,
        lambda_link: float = 1.0,
        radius: int = 2,
        tolerance: int = 1,
        window: int = 5,
        sigmoid: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        numbers = {"lambda_precision": lambda_precision, "lambda_link": lambda_link}
        for name, value in {**numbers, "radius": radius, "tolerance": tolerance}.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of voxels from 1, got {window}.")
        self.loss = loss
        self.lambda_precision = float(lambda_precision)
        self.lambda_link = float(lambda_link)
        self.radius = radius
        self.tolerance = tolerance
        self.window = window
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
        head = input if isinstance(input, torch.Tensor) else input[0]
        head = head.as_tensor() if isinstance(head, MetaTensor) else head
        regions = self.sigmoid and target.shape[1] == 2 * head.shape[1]
        channels = head.shape[1] if regions else 1
        label, tube = target[:, :channels], target[:, channels:]
        if self.ramp > 0 and self.lambda_precision > 0:
            term = false_tube(head, label, self.radius, self.tolerance, self.sigmoid, self.ignore_index)
            self.terms["false_tube"] = term.detach()
            value = value + self.ramp * self.lambda_precision * term
        if self.ramp > 0 and self.lambda_link > 0:
            term = weakest_link(head, label, tube, self.window, self.sigmoid, self.ignore_index)
            self.terms["weakest_link"] = term.detach()
            value = value + self.ramp * self.lambda_link * term
        return value


def false_tube(
    input: torch.Tensor,
    label: torch.Tensor,
    radius: int = 2,
    tolerance: int = 1,
    sigmoid: bool = False,
    ignore_index: int | None = None,
) -> torch.Tensor:
    r"""How much of the predicted tubes lies outside the label, and how sure the network is of it.

    .. math::
        F = \frac{1}{B} \sum_b \frac{1}{\max(1, |C_b|)} \sum_{c \in C_b}
        \frac{1}{|Q_{bc}|} \sum_{i \in Q_{bc}} p_{bci}\, [d(i, Y_{bc}) > tolerance]

    :math:`Q_{bc}` is the tubed skeleton of the voxels that the network gives to class :math:`c`: the class of highest
    probability, with sigmoid a probability above one half. It is made as that of a label is, and without a gradient;
    :math:`C_b` are the classes for which there is one. The gradient lowers the probability of false branches along
    their whole length, and leaves the width of true ones to Dice.

    Args:
        input: logits, shape BNH[WD].
        label: class indices, shape B1H[WD], 0 background; or with ``sigmoid`` regions, 0 and 1, shape BNH[WD].
        radius: of the tube, L1, voxels.
        tolerance: L1, voxels.
        sigmoid: independent channels instead of exclusive classes.
        ignore_index: label of voxels that are no prediction.

    Returns:
        Scalar from 0 to 1, lower is better; 0 without any predicted foreground.
    """
    keep = counted(label, ignore_index)
    regions = sigmoid and label.shape[1] == input.shape[1]
    with torch.no_grad():
        if sigmoid:
            found = (input > 0) & keep
            found = found if regions else without_background(found)
            entries = _entries(found, lambda mask: tubed_skeleton(mask.astype(np.uint8), radius) > 0)
        else:
            classes = torch.where(keep[:, 0], input.argmax(1), 0)
            entries = _index_entries(classes, lambda index: tubed_skeleton(index, radius))
        entries = _to(entries, input.device)
        outside = ~_near(label, entries, tolerance, regions)
    item, channel, voxel = entries
    share = shares(item, channel, input.shape)
    p = log_probabilities(input, item[outside], channel[outside], [axis[outside] for axis in voxel], sigmoid).exp()
    return (p * share[outside]).sum().to(term_dtype(input))


def weakest_link(
    input: torch.Tensor,
    label: torch.Tensor,
    tube: torch.Tensor,
    window: int = 5,
    sigmoid: bool = False,
    ignore_index: int | None = None,
) -> torch.Tensor:
    r"""How much is missed at the points of each centreline that are missed most.

    .. math::
        W = \frac{1}{B} \sum_b \frac{1}{\max(1, |C_b|)} \sum_{c \in C_b}
        \frac{1}{|K_{bc}|} \sum_{i \in K_{bc}} (1 - p_{bci}), \qquad
        K_{bc} = \{i \in S_{bc} : p_{bci} \le p_{bcj}\ \forall j \in S_{bc} \cap w(i)\}

    :math:`S_{bc}` is the centreline of the tube of class :math:`c`, :math:`w(i)` the window around :math:`i`. A tube is
    as connected as its weakest point: where skeleton recall has the same gradient all along, this has it at the gaps.

    Args:
        input: logits, shape BNH[WD].
        label: where voxels to ignore are marked.
        tube: tubed skeleton; class indices, shape B1H[WD], or 0 and 1, shape BNH[WD].
        window: voxels along each axis, odd.
        sigmoid: independent channels instead of exclusive classes.
        ignore_index: label of voxels that do not count.

    Returns:
        Scalar from 0 to 1, lower is better; 0 without any tube.
    """
    with torch.no_grad():
        keep = counted(label, ignore_index)
        if tube.shape[1] == input.shape[1]:
            # channel 0 of exclusive classes is "no tube"
            regions = sigmoid and label.shape[1] == input.shape[1]
            found = (tube > 0) & keep
            entries = _entries(found if regions else without_background(found), skeleton)
        else:
            entries = _index_entries(torch.where(keep, tube, 0)[:, 0], lambda index: tubed_skeleton(index, 0))
        item, channel, voxel = _to(entries, input.device)
        p = log_probabilities(input, item, channel, voxel, sigmoid).exp()
        worst = _is_lowest(p, item, channel, voxel, input.shape, window // 2)
    item, channel, voxel = item[worst], channel[worst], [axis[worst] for axis in voxel]
    share = shares(item, channel, input.shape)
    p = log_probabilities(input, item, channel, voxel, sigmoid).exp()
    return ((1 - p) * share).sum().to(term_dtype(input))


def _entries(found: torch.Tensor, thin: Callable[[np.ndarray], np.ndarray]) -> _Entries:
    """Voxels that ``thin`` leaves of each channel alone; channels that are empty cost nothing."""
    kept = torch.zeros(found.shape, dtype=torch.bool)
    for item, channel in found.flatten(2).any(2).nonzero().tolist():
        kept[item, channel] = torch.from_numpy(thin(found[item, channel].cpu().numpy()))
    item, channel, *voxel = kept.nonzero(as_tuple=True)
    return item, channel, list(voxel)


def _index_entries(classes: torch.Tensor, thin: Callable[[np.ndarray], np.ndarray]) -> _Entries:
    """Voxels that ``thin`` leaves of each item's class indices, shape BH[WD], with their class."""
    # thinning is the processor's work; the fewest bytes cross over to it
    small = classes.to(torch.uint8 if classes.numel() == 0 or classes.max() < 256 else torch.int32).cpu()
    kept = torch.stack([torch.from_numpy(thin(item.numpy())) for item in small])
    item, *voxel = kept.nonzero(as_tuple=True)
    return item, kept[(item, *voxel)].long(), list(voxel)


def _to(entries: _Entries, device: torch.device) -> _Entries:
    item, channel, voxel = entries
    return item.to(device), channel.to(device), [axis.to(device) for axis in voxel]


def _near(label: torch.Tensor, entries: _Entries, distance: int, regions: bool) -> torch.Tensor:
    """Whether the label has the class of each entry within an L1 distance."""
    item, channel, voxel = entries
    at = channel if regions else torch.zeros_like(channel)
    wanted = (torch.ones_like(channel) if regions else channel).to(label.dtype)
    near = torch.zeros_like(channel, dtype=torch.bool)
    for offset in product(range(-distance, distance + 1), repeat=len(voxel)):
        if sum(map(abs, offset)) <= distance:
            # at the border this looks at a voxel that is nearer
            beside = [(v + step).clamp(0, size - 1) for v, step, size in zip(voxel, offset, label.shape[2:])]
            near |= label[(item, at, *beside)] == wanted
    return near


def _is_lowest(
    p: torch.Tensor, item: torch.Tensor, channel: torch.Tensor, voxel: list[torch.Tensor], shape: torch.Size, reach: int
) -> torch.Tensor:
    """Whether no entry of the same item and class within ``reach`` along every axis has a lower value."""
    # one number an entry; the margin keeps a step over the border from meeting another row
    sizes = [size + 2 * reach for size in shape[2:]]
    key = item * shape[1] + channel
    for axis, size in zip(voxel, sizes):
        key = key * size + axis
    key, order = key.sort()
    value = p[order]
    lowest = torch.ones_like(key, dtype=torch.bool)
    for offset in product(range(-reach, reach + 1), repeat=len(voxel)):
        step = 0
        for along, size in zip(offset, sizes):
            step = step * size + along
        if step != 0 and len(key) > 0:
            position = torch.searchsorted(key, key + step).clamp(max=len(key) - 1)
            lowest &= (key[position] != key + step) | (value[position] >= value)
    out = torch.empty_like(lowest)
    out[order] = lowest
    return out
