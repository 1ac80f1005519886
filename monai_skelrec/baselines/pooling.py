"""Largest value among neighbours, with a gradient, in elementwise steps: what soft skeletons and SCNP are made of.

PyTorch's ``max_pool3d`` visits every window on its own and keeps the place of each maximum in eight bytes. A maximum of
shifted copies is the same, several times faster on a processor, and its place among two neighbours an axis fits a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

__all__ = ["largest_in_cross", "largest_in_window"]


def largest_in_cross(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Largest of each element and of the two beside it on each of ``axes``; nothing lies beyond the border.

    Args:
        x: any shape and floating dtype.
        axes: of ``x``, ascending.

    Returns:
        Shape and dtype of ``x``. The gradient goes to the largest, of several equal ones to the first in memory, as
        that of ``max_pool3d`` does. It is differentiable once.
    """
    largest: torch.Tensor = _LargestInCross.apply(x, tuple(axes))
    return largest


def largest_in_window(x: torch.Tensor, size: int = 3) -> torch.Tensor:
    """Largest in a square or cube around each element: ``max_pool2d`` or ``max_pool3d`` with a step of 1.

    Args:
        x: shape BNH[WD].
        size: edge of the window, odd.

    Returns:
        Shape and dtype of ``x``.
    """
    # the last axis first, so that of equal ones the first in memory wins
    for axis in reversed(range(2, x.ndim)):
        for _ in range(size // 2):
            x = largest_in_cross(x, [axis])
    return x


class _LargestInCross(torch.autograd.Function):
    """Keeps of which neighbour each maximum is: 0 of the element itself, 2k+1 and 2k+2 before and behind on axis k."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        largest = x.detach().clone()
        source = torch.zeros_like(x, dtype=torch.uint8) if ctx.needs_input_grad[0] else None
        # from the nearest before it back to the first in memory, which takes ties; then on to the last, which does not
        for k, axis in reversed(list(enumerate(axes))):
            there, here = x.narrow(axis, 0, x.shape[axis] - 1), largest.narrow(axis, 1, x.shape[axis] - 1)
            if source is not None:
                source.narrow(axis, 1, x.shape[axis] - 1).masked_fill_(there >= here, 2 * k + 1)
            torch.maximum(there, here, out=here)
        for k, axis in reversed(list(enumerate(axes))):
            there, here = x.narrow(axis, 1, x.shape[axis] - 1), largest.narrow(axis, 0, x.shape[axis] - 1)
            if source is not None:
                source.narrow(axis, 0, x.shape[axis] - 1).masked_fill_(there > here, 2 * k + 2)
            torch.maximum(there, here, out=here)
        ctx.axes = axes
        ctx.save_for_backward(source)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (source,) = ctx.saved_tensors
        out = grad * (source == 0)
        for k, axis in enumerate(ctx.axes):
            length = grad.shape[axis] - 1
            before, behind = ((source == 2 * k + 1), (source == 2 * k + 2))
            out.narrow(axis, 0, length).addcmul_(grad.narrow(axis, 1, length), before.narrow(axis, 1, length).to(grad))
            out.narrow(axis, 1, length).addcmul_(grad.narrow(axis, 0, length), behind.narrow(axis, 0, length).to(grad))
        return out, None
