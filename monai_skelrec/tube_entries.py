"""Logits at the voxels of thin lines -> a term of the loss: what several losses share.

A tube is a list of entries, one for each of its voxels and classes: item, channel and voxel. Of the logits only these
are read, and all sums are float64.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["counted", "label_channels", "log_probabilities", "refuse_negative", "shares", "without_background"]


def counted(label: torch.Tensor, ignore_index: int | None) -> torch.Tensor:
    """Where no channel of a label, shape BNH[WD], is ``ignore_index``; shape B1H[WD]."""
    if ignore_index is None:
        return torch.ones_like(label[:, :1], dtype=torch.bool)
    return (label != ignore_index).all(1, keepdim=True)


def label_channels(target: torch.Tensor, n_classes: int, sigmoid: bool, stacked: int = 2) -> int:
    """How many channels of a target are the label's: those of regions, or one of class indices.

    Args:
        target: label, tubed skeleton and what else is stacked on it, in this order on the channel axis.
        n_classes: of the logits.
        sigmoid: independent channels instead of exclusive classes.
        stacked: how many things stand in the target.
    """
    return n_classes if sigmoid and target.shape[1] == stacked * n_classes else 1


def refuse_negative(**numbers: float) -> None:
    """Raise ValueError for the first of some named numbers that is below 0."""
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}.")


def without_background(found: torch.Tensor) -> torch.Tensor:
    """A copy of booleans, shape BNH[WD], false in channel 0."""
    found = found.clone()
    found[:, 0] = False
    return found


def shares(item: torch.Tensor, channel: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Weight of each entry, so that their sum is the mean over entries, then classes that are there, then items.

    Args:
        item: of each entry, shape (n,).
        channel: of each entry.
        shape: BNH[WD], of the logits.

    Returns:
        Shape (n,), float64. An item without entries counts as one whose entries are 0.
    """
    n_items, n_classes = shape[:2]
    place = item * n_classes + channel
    sizes = torch.bincount(place, minlength=n_items * n_classes)
    n_there = (sizes.view(n_items, n_classes) > 0).sum(1)
    return 1 / (n_items * n_there[item] * sizes[place]).double()


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
    logits = input.movedim(1, -1)[(item, *voxel)].double()
    return torch.log_softmax(logits, 1).gather(1, channel[:, None])[:, 0]
