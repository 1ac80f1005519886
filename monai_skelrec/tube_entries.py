"""Logits at the voxels of thin lines -> a term of the loss: what several losses share.

A tube is a list of entries, one for each of its voxels and classes: item, channel and voxel. Of the logits only these
are read, and all sums are float64.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["counted", "log_probabilities"]


def counted(label: torch.Tensor, ignore_index: int | None) -> torch.Tensor:
    """Where no channel of a label, shape BNH[WD], is ``ignore_index``; shape B1H[WD]."""
    if ignore_index is None:
        return torch.ones_like(label[:, :1], dtype=torch.bool)
    return (label != ignore_index).all(1, keepdim=True)


def log_probabilities(
    input: torch.Tensor, item: torch.Tensor, channel: torch.Tensor, voxel: list[torch.Tensor], sigmoid: bool
) -> torch.Tensor:
    """Logarithm of the probability of each entry.

    Args:
        input: logits, shape BNH[WD].
        item: of each entry, shape (n,).
        channel: of each entry.
        voxel: of each entry, a tensor an axis.
        sigmoid: independent channels instead of exclusive classes.

    Returns:
        Shape (n,), float64, finite for finite logits.
    """
    if sigmoid:
        return F.logsigmoid(input[(item, channel, *voxel)].double())
    # channels are indexed too: the gradient of a view with channels last would have its strides, and adding it to the
    # gradients of other terms would take longer than all of this
    classes = torch.arange(input.shape[1], device=input.device)
    logits = input[(item[:, None], classes, *(axis[:, None] for axis in voxel))].double()
    return torch.log_softmax(logits, 1).gather(1, channel[:, None])[:, 0]
