"""Logits and label -> each voxel's logit is that of its worst neighbour of the same class -> Dice and cross-entropy."""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from torch.nn.modules.loss import _Loss

from ..losses import DiceCESkeletonRecallLoss
from ..tube_entries import counted
from ._compound import label_of
from .pooling import largest_in_window

__all__ = ["SCNPDiceCELoss", "worst_neighbour"]


def worst_neighbour(
    logits: torch.Tensor, label: torch.Tensor, size: int = 3, ignore_index: int | None = None
) -> torch.Tensor:
    r"""Logits in which every voxel has the value of the worst of its neighbours on the same side of the label.

    .. math::
        \tilde x_v = \min_{u \in W_v,\, Y_u = 1} x_u \text{ where } Y_v = 1,\qquad
        \tilde x_v = \max_{u \in W_v,\, Y_u = 0} x_u \text{ where } Y_v = 0

    for each channel, with the window :math:`W_v` of ``size`` voxels an axis around :math:`v`.

    Args:
        logits: shape BNH[WD].
        label: class indices, shape B1H[WD], or 0 and 1, shape BNH[WD].
        size: of the window, odd.
        ignore_index: label of voxels that no window holds; they keep their own logit.

    Returns:
        Shape BNH[WD], dtype of ``logits``.

    Raises:
        ValueError: when ``size`` is even or below 1.
    """
    indices = torch.arange(logits.shape[1], device=label.device).view(1, -1, *[1] * (label.ndim - 2))
    inside = label == (1 if label.shape[1] == logits.shape[1] else indices)
    keep = counted(label, ignore_index)
    never = -torch.inf
    lowest = -largest_in_window(torch.where(inside & keep, -logits, never), size)
    highest = largest_in_window(torch.where(~inside & keep, logits, never), size)
    return torch.where(keep, torch.where(inside, lowest, highest), logits)


class SCNPDiceCELoss(_Loss):
    """Dice and cross-entropy on pooled logits: same-class neighbour penalisation (SCNP) of [1].

    A voxel is as good as its worst neighbour of the same class, so that a gap in a vessel or an island beside it is
    penalised at all voxels around it, and all of that gradient arrives at the gap or the island. The logits pass
    through :py:func:`worst_neighbour`, then any loss follows; here it is
    :py:class:`monai_skelrec.DiceCESkeletonRecallLoss`, without skeleton recall as published.

    [1] Valverde et al. "Towards High-Quality Image Segmentation: Improving Topology Accuracy by Penalizing Neighbor
    Pixels." CVPR 2026. https://arxiv.org/abs/2603.18671

    Args:
        size: of the window, odd; 1 pools nothing.
        include_background: see :py:class:`monai_skelrec.DiceCESkeletonRecallLoss`, as all that follow.
        lambda_dice: weight of Dice.
        lambda_ce: weight of cross-entropy.
        lambda_skeleton: weight of skeleton recall, of the pooled logits too; 0 as published.
        sigmoid: independent channels instead of exclusive classes.
        batch: whether sums go over the batch too.
        ignore_index: label of voxels that do not count, and that no window holds.

    Attributes:
        terms: ``dice``, ``ce`` and ``skeleton_recall`` of the last call, on pooled logits.

    Raises:
        ValueError: when ``size`` is even or below 1.
    """

    def __init__(
        self,
        size: int = 3,
        include_background: bool = False,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        lambda_skeleton: float = 0.0,
        sigmoid: bool = False,
        batch: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size must be odd and at least 1, for a window has a centre, got {size}.")
        self.size = size
        self.sigmoid = sigmoid
        self.ignore_index = ignore_index
        self.loss = DiceCESkeletonRecallLoss(
            include_background=include_background,
            lambda_dice=lambda_dice,
            lambda_ce=lambda_ce,
            lambda_skeleton=lambda_skeleton,
            sigmoid=sigmoid,
            batch=batch,
            ignore_index=ignore_index,
        )
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: logits, shape BNH[WD].
            target: label and tubed skeleton stacked, B2H[WD], B(1+N)H[WD] or B(2N)H[WD].

        Returns:
            Scalar, lower is better. float32 for half precision.

        Raises:
            ValueError: when shapes or values do not fit.
        """
        input, target = (x.as_tensor() if isinstance(x, MetaTensor) else x for x in (input, target))
        label = label_of(input, target, self.sigmoid)
        loss: torch.Tensor = self.loss(worst_neighbour(input, label, self.size, self.ignore_index), target)
        self.terms = dict(self.loss.terms)
        return loss
