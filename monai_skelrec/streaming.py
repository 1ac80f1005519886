"""Step "image -> logits" in bounded memory: windows run along one axis, and what no later window touches is handed on.

Windows, their weights and their sum are those of MONAI's sliding window; the logits of one row of windows are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, product
from typing import NamedTuple

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch.nn import functional

__all__ = ["Windows", "stream_logits", "window_starts"]


class Windows(NamedTuple):
    """How a network sees an image.

    Attributes:
        size: voxels of a window; along an axis where the image is smaller it is padded with 0 on both sides.
        overlap: share of a window that the next one covers again.
        batch_size: windows at once.
        mode: "gaussian" or "constant" weight of a window's voxels.
        sigma_scale: standard deviation of the Gaussian, in windows.
        device: where the network is.
        buffer_device: where logits are summed up.
        amp: mixed precision.
    """

    size: tuple[int, ...]
    overlap: float = 0.5
    batch_size: int = 1
    mode: str = "gaussian"
    sigma_scale: float = 0.125
    device: torch.device = torch.device("cpu")
    buffer_device: torch.device = torch.device("cpu")
    amp: bool = False


def window_starts(shape: Sequence[int], windows: Windows) -> list[list[int]]:
    """For each axis where windows begin; negative in the padding of an image that is smaller than a window.

    Args:
        shape: of the image, without channels.
        windows: how it is seen.
    """
    padded = [max(size, window) for size, window in zip(shape, windows.size)]
    steps = [
        window if window == size else max(int(window * (1 - windows.overlap)), 1)
        for size, window in zip(padded, windows.size)
    ]
    patches = dense_patch_slices(padded, windows.size, steps)
    before = [(full - size) // 2 for full, size in zip(padded, shape)]
    return [sorted({patch[axis].start - before[axis] for patch in patches}) for axis in range(len(shape))]


@torch.no_grad()
def stream_logits(
    image: torch.Tensor,
    network: Callable[[torch.Tensor], torch.Tensor],
    windows: Windows,
    *,
    axis: int = 0,
    region: Sequence[tuple[int, int]] | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the logits of an image piece by piece along one axis, each as soon as its last window is done.

    Args:
        image: shape CH[WD], of the network's dtype.
        network: BCH[WD] -> BNH[WD].
        windows: how the image is seen.
        axis: spatial axis along which the windows advance; the buffer holds ``windows.size[axis]`` slices.
        region: first and last index (exclusive) of what is wanted along each axis but ``axis``, whose entry is not
            looked at; windows elsewhere are not run. None: all.

    Yields:
        Index along ``axis`` of the first slice, and logits, float32, shape (N, slices, ...) with ``axis`` first and
        the region's other axes in their order. A piece is a view of the buffer, good until the next one is asked for.
    """
    shape = tuple(image.shape[1:])
    region = [(0, size) for size in shape] if region is None else list(region)
    starts = [
        [at for at in along if each == axis or (at < region[each][1] and at + windows.size[each] > region[each][0])]
        for each, along in enumerate(window_starts(shape, windows))
    ]
    others = [each for each in range(len(shape)) if each != axis]
    weight = compute_importance_map(windows.size, mode=windows.mode, sigma_scale=windows.sigma_scale)
    weight = weight.to(windows.buffer_device, torch.float32).movedim(axis, 0)
    depth = windows.size[axis]
    sizes = [region[each][1] - region[each][0] for each in others]
    norm = torch.zeros(depth, *sizes, device=windows.buffer_device)
    total: torch.Tensor | None = None  # how many classes there are says the first window
    begin = starts[axis][0]
    for first, row in groupby(sorted(product(*starts), key=lambda at: at[axis]), key=lambda at: at[axis]):
        # windows from here on do not reach back
        if total is not None:
            yield from _finished(total, norm, begin, first, shape[axis])
        begin = first
        corners = list(row)
        for start in range(0, len(corners), windows.batch_size):
            batch = corners[start : start + windows.batch_size]
            seen = torch.stack([_window(image, corner, windows.size) for corner in batch]).to(windows.device)
            with torch.autocast(windows.device.type, enabled=windows.amp):
                logits = network(seen)
            logits = logits.to(windows.buffer_device, torch.float32).movedim(axis + 2, 2)
            if total is None:
                total = torch.zeros(logits.shape[1], depth, *sizes, device=windows.buffer_device)
            for corner, one in zip(batch, logits):
                inside = [
                    slice(
                        max(region[each][0] - corner[each], 0), min(region[each][1] - corner[each], windows.size[each])
                    )
                    for each in others
                ]
                there = [
                    slice(part.start + corner[each] - region[each][0], part.stop + corner[each] - region[each][0])
                    for each, part in zip(others, inside)
                ]
                for rows, slots in _slots(first, depth, depth):
                    part = weight[(rows, *inside)]
                    for summed, logit in zip(total, one):  # one class after the other holds less, and is faster
                        summed[(slots, *there)] += logit[(rows, *inside)] * part
                    norm[(slots, *there)] += part
    if total is not None:
        yield from _finished(total, norm, begin, begin + depth, shape[axis])


def _finished(
    total: torch.Tensor, norm: torch.Tensor, begin: int, end: int, size: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Slices of the ring that no later window touches, without those in the padding; emptied afterwards."""
    for rows, slots in _slots(begin, end - begin, total.shape[1]):
        first = begin + rows.start
        skipped, kept = max(-first, 0), max(min(size - first, rows.stop - rows.start), 0)
        inside = slice(slots.start + skipped, slots.start + kept)
        if skipped < kept:
            yield first + skipped, total[:, inside].div_(norm[inside])
        total[:, slots] = 0
        norm[slots] = 0


def _slots(first: int, count: int, depth: int) -> list[tuple[slice, slice]]:
    """Where ``count`` slices from index ``first`` lie in a ring of ``depth`` slots: in one piece, or around its end."""
    at = first % depth
    before_end = min(count, depth - at)
    pieces = [(slice(0, before_end), slice(at, at + before_end))]
    if before_end < count:
        pieces.append((slice(before_end, count), slice(0, count - before_end)))
    return pieces


def _window(image: torch.Tensor, corner: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """A window of an image, 0 outside of it."""
    inside = [slice(max(at, 0), min(at + length, full)) for at, length, full in zip(corner, size, image.shape[1:])]
    window = image[(slice(None), *inside)]
    padding = [
        amount
        for at, length, part in reversed(list(zip(corner, size, inside)))
        for amount in (part.start - at, at + length - part.stop)
    ]
    return functional.pad(window, padding) if any(padding) else window
