"""Heads of several resolutions -> one loss: label and tubed skeleton are pooled to each head, and no tube breaks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from torch.nn.modules.loss import _Loss

from .losses import SkeletonRecallLoss
from .tube_entries import counted

__all__ = ["TubeDeepSupervisionLoss", "pool_target"]


def pool_target(
    label: torch.Tensor | None,
    tube: torch.Tensor,
    sizes: Sequence[Sequence[int]],
    num_classes: int,
    ignore_index: int | None = None,
) -> list[torch.Tensor]:
    r"""Label and tubed skeleton on coarser grids, so that no tube falls to pieces.

    On an axis of :math:`n` voxels and :math:`m \le n` blocks, voxel :math:`v` belongs to block
    :math:`b(v) = \lfloor v m / n \rfloor`. Per item, with the voxels :math:`V_c` of the tube of class :math:`c` that
    are not ignored, and :math:`V = \bigcup_c V_c`:

    - **Tube**, each class alone: block :math:`\beta` belongs to class :math:`c` if :math:`b(v) = \beta` for any
      :math:`v \in V_c`. Neighbours land in one block or in neighbouring ones, so a class never has more components
      than before; nearest-neighbour sampling tears a thin tube into dozens. Classes may share a block, which an
      index map cannot hold without splitting one of them.
    - **Label**, class indices: the commonest label of the voxels :math:`v \in V` with :math:`b(v) = \beta`, the lowest
      of several (a voxel on the tubes of two classes counts twice); in a block without any, the label of the voxel at
      its centre, :math:`\lfloor (2 \beta + 1) n / 2m \rfloor` on each axis. By the latter alone, most blocks of a thin
      tube would be labelled background, and cross-entropy would fight skeleton recall.
    - **Label**, overlapping regions: all regions of those voxels; in a block without any, those at its centre.

    A block is ignored where its label is ``ignore_index``, which a block with a tube never is.

    Args:
        label: class indices, shape B1H[WD]; overlapping regions, shape BNH[WD]; None where there is only a tube.
        tube: tubed skeleton; class indices, shape B1H[WD], or 0 and 1, shape BNH[WD].
        sizes: of the coarser grids, in voxels, none larger than that of ``tube`` on any axis.
        num_classes: N, background included; 1 for a single region.
        ignore_index: label of voxels whose tube does not count.

    Returns:
        For each size, label and tube stacked on the channel axis, as the losses take them: shape B(1+N)h[wd] or
        B(2N)h[wd], BNh[wd] without label. Dtype and device of ``tube``.

    Raises:
        ValueError: when a size is larger than that of ``tube``, or a voxel of the tube holds no class.
    """
    n_items, _, *full = tube.shape
    for size in sizes:
        if len(size) != len(full) or any(m > n for m, n in zip(size, full)):
            raise ValueError(
                f"heads must be no larger than the target, of size {tuple(full)}, with full resolution first; "
                f"got one of size {tuple(size)}."
            )
    found = tube != 0
    if label is not None and ignore_index is not None:
        found = found & counted(label, ignore_index)
    item, channel, *voxel = found.nonzero(as_tuple=True)
    indices = tube.shape[1] == 1 < num_classes
    classes = _classes("tube", tube[(item, channel, *voxel)], num_classes) if indices else channel

    targets = []
    for size in sizes:
        block = [v * m // n for v, m, n in zip(voxel, size, full)]
        coarse = tube.new_zeros(n_items, num_classes, *size)
        coarse[(item, classes, *block)] = 1
        if label is not None:
            at_tube = label.movedim(1, -1)[(item, *voxel)]  # (voxels, channels)
            nearest = _nearest(label, size)
            if label.shape[1] == num_classes:
                pooled = _all_regions(at_tube, nearest, item, block)
            else:
                at_tube = _classes("label", at_tube[:, 0], num_classes)
                pooled = _majority(at_tube, nearest, item, block, num_classes)
            coarse = torch.cat([pooled, coarse], 1)
        targets.append(coarse)
    return targets


def _classes(name: str, values: torch.Tensor, num_classes: int) -> torch.Tensor:
    classes = values.long()
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if len(wrong) > 0:
        raise ValueError(f"{name} must hold classes from 0 to {num_classes - 1} on the tube, got {wrong[0].item()}.")
    return classes


def _nearest(label: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Label of the voxel at the centre of each block, in whole numbers: any dtype, no rounding."""
    for axis, m in enumerate(size, start=2):
        centre = (2 * torch.arange(m, device=label.device) + 1) * label.shape[axis] // (2 * m)
        label = label.index_select(axis, centre)
    return label


def _majority(
    at_tube: torch.Tensor, nearest: torch.Tensor, item: torch.Tensor, block: list[torch.Tensor], num_classes: int
) -> torch.Tensor:
    """Commonest label of each block's tube voxels, the lowest of several, elsewhere ``nearest``."""
    place = item
    for b, m in zip(block, nearest.shape[2:]):
        place = place * m + b
    pair, votes = (place * num_classes + at_tube).unique(return_counts=True)
    # votes decide, then the lowest class: one number for both, and the largest of a block wins
    rank = votes * num_classes + (num_classes - 1 - pair % num_classes)
    best = torch.zeros(nearest.numel(), dtype=torch.long, device=nearest.device)
    best = best.scatter_reduce(0, pair // num_classes, rank, "amax").view(nearest.shape)
    return torch.where(best > 0, (num_classes - 1 - best % num_classes).to(nearest.dtype), nearest)


def _all_regions(
    at_tube: torch.Tensor, nearest: torch.Tensor, item: torch.Tensor, block: list[torch.Tensor]
) -> torch.Tensor:
    """Every region of each block's tube voxels, elsewhere ``nearest``."""
    entry, region = at_tube.nonzero(as_tuple=True)
    regions, has_tube = torch.zeros_like(nearest), torch.zeros_like(nearest[:, :1], dtype=torch.bool)
    regions[(item[entry], region, *(b[entry] for b in block))] = 1
    has_tube[(item, torch.zeros_like(item), *block)] = True
    return torch.where(has_tube, regions, nearest)


class TubeDeepSupervisionLoss(_Loss):
    r"""Any of this package's losses over the heads of a network, each at its own resolution: deep supervision.

    .. math::
        \sum_i w_i \, L(x_i, t_i), \qquad w_i = \frac{2^{-i}}{\sum_j 2^{-j}}

    over the heads :math:`x_i`, full resolution first, with the target :math:`t_0` as given and :math:`t_i` pooled by
    :py:func:`pool_target`. nnU-Net, where these weights come from, gives its coarsest head the weight 0;
    :py:class:`monai_skelrec.SupervisedDynUNet` has no such head, so that each head that exists is trained. The
    published code of skeleton recall pools no tube and so trains its full-resolution head only, at the weight that it
    has among all.

    MONAI's ``DeepSupervisionLoss`` samples the stacked target by nearest neighbour, which tears the tubes, and its
    weights are not normalised.

    Args:
        loss: one of this package's losses, or another that takes the target forms of
            :py:class:`monai_skelrec.DiceCESkeletonRecallLoss`, B(1+N)H[WD] among them.
        weights: one number of at least 0 for each head, for a network whose heads call for others; normalised.

    Attributes:
        terms: those of ``loss`` at full resolution, of the last call.

    Raises:
        ValueError: when a weight is negative, or none is positive.

    Example:
        >>> label = torch.tensor([0, 1, 1, 2]).view(1, 1, 1, 4)
        >>> heads = [torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 2)]
        >>> TubeDeepSupervisionLoss(SkeletonRecallLoss(to_onehot_y=True, softmax=True))(heads, label)
        tensor(0.6667)
    """

    def __init__(self, loss: torch.nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None and (min(weights, default=-1) < 0 or sum(weights) <= 0):
            raise ValueError(f"weights must be numbers of at least 0, one of them positive, got {list(weights)}.")
        self.loss = loss
        self.weights = None if weights is None else [float(weight) for weight in weights]
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: logits of each head, shape BNh[wd], full resolution first. A single tensor, as in evaluation or of
                a network without heads, goes to the loss as it is.
            target: what the loss takes at full resolution: label and its tubed skeleton stacked on the channel axis,
                for :py:class:`monai_skelrec.SkeletonRecallLoss` the tubed skeleton alone.

        Returns:
            Scalar, lower is better.

        Raises:
            ValueError: when there are no heads, another number than weights, or one is larger than the target; and
                what the loss raises.
        """
        target = target.as_tensor() if isinstance(target, MetaTensor) else target
        heads = [input] if isinstance(input, torch.Tensor) else list(input)
        weights = [1.0] if isinstance(input, torch.Tensor) else self._weights_of(len(heads))
        # first, for it also refuses a target that cannot be pooled
        value: torch.Tensor = weights[0] * self.loss(heads[0], target)
        self.terms = dict(getattr(self.loss, "terms", {}))
        for weight, head, pooled in zip(weights[1:], heads[1:], self._pooled(heads, target)):
            value = value + weight * self.loss(head, pooled)
        return value

    def _weights_of(self, n_heads: int) -> list[float]:
        """Weights of so many heads, full resolution first; their sum is 1.

        Args:
            n_heads: at least one, and as many as ``weights``.

        Raises:
            ValueError: when there are others.
        """
        weights = [0.5**i for i in range(n_heads)] if self.weights is None else self.weights
        if len(weights) != n_heads or n_heads == 0:
            raise ValueError(f"expected {len(weights) or 'at least one'} heads, got {n_heads}.")
        return [weight / sum(weights) for weight in weights]

    def _pooled(self, heads: list[torch.Tensor], target: torch.Tensor) -> list[torch.Tensor]:
        num_classes = heads[0].shape[1]
        label_channels = num_classes if target.shape[1] == 2 * num_classes else 1
        if isinstance(self.loss, SkeletonRecallLoss):
            label_channels = 0
        return pool_target(
            target[:, :label_channels] if label_channels else None,
            target[:, label_channels:],
            [tuple(head.shape[2:]) for head in heads[1:]],
            num_classes,
            getattr(self.loss, "ignore_index", None),
        )
