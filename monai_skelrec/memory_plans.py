"""Step "scan -> how to segment it": along which axis windows run, and in how many tiles, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Plan", "plan_memory"]

# logits that one step of resampling holds, at least one slice of one class
CHUNK = 2**20

_GB = 1e9
_FLOAT = 4


class Plan(NamedTuple):
    """How one scan is segmented.

    Attributes:
        axis: of the network's grid, along which windows run.
        tile_axis: axis that is cut into tiles, done one after the other; None in 1D.
        tiles: their number; windows across a border are run for both sides.
        memory_gb: arrays held at the peak: scan, image, logits, label map, and what resampling needs. The network with
            its activations and the libraries come on top.
    """

    axis: int
    tile_axis: int
    tiles: int
    memory_gb: float


def plan_memory(
    scan_shape: Sequence[int],
    network_shape: Sequence[int],
    window: Sequence[int],
    *,
    classes: int,
    channels: int = 1,
    probabilities: bool = False,
    max_memory_gb: float | None = None,
) -> Plan:
    """Choose the axis with the smallest buffer of logits, and as few tiles as the bound allows.

    Args:
        scan_shape: of the scan, axes in the network's order, without channels.
        network_shape: of the network's grid.
        window: voxels of a window.
        classes: background included.
        channels: of the scan.
        probabilities: whether those of all classes are computed beside the label map, into a file.
        max_memory_gb: bound on :py:attr:`Plan.memory_gb`, in 1e9 bytes; None: no bound, hence one tile.

    Raises:
        ValueError: when no number of tiles meets the bound; what the least would be is named.

    Example:
        >>> plan_memory((1024, 1024, 800), (1024, 1024, 800), (192, 160, 80), classes=14, max_memory_gb=11)
        Plan(axis=2, tile_axis=0, tiles=1, memory_gb=10.1)
    """
    scan, image = (float(np.prod(shape)) for shape in (scan_shape, network_shape))
    # the scan as it is read and as the file has it; before and after an axis is resampled; then the image, its
    # normalised copy and one for arithmetic between them
    stages = [float(np.prod([*network_shape[:axis], *scan_shape[axis:]])) for axis in range(len(network_shape) + 1)]
    preparing = _FLOAT * channels * max(2 * scan, 3 * image, *map(sum, zip(stages, stages[1:])))
    slices = [image / size for size in network_shape]
    axis = int(np.argmin([count * length for count, length in zip(slices, window)]))
    others = [each for each in range(len(network_shape)) if each != axis]
    tile_axis = max(others, key=lambda each: network_shape[each], default=axis)
    most = scan_shape[tile_axis] if others else 1

    def memory(tiles: int) -> float:
        part = min(-(-network_shape[tile_axis] // tiles) + 2, network_shape[tile_axis]) / network_shape[tile_axis]
        ring = _FLOAT * (classes + 1) * slices[axis] * part * window[axis]
        # the slice of either grid that is larger, and as many at once as are ready, within CHUNK
        wide = max(slices[axis], scan / scan_shape[axis]) * part
        ready = window[axis] * max(scan_shape[axis] / network_shape[axis], 1) + 1
        # of one class: neighbours, their mean along each axis, maximum; and the last slice of all classes
        work = _FLOAT * (5 * max(wide, min(CHUNK, wide * ready)) + slices[axis] * part * classes)
        if probabilities:  # logits, shares, and these in half precision
            work += 2.5 * _FLOAT * max(wide * classes, min(CHUNK, wide * classes * ready))
        labels = scan * (1 if classes <= 256 else 2)
        return max(preparing, _FLOAT * channels * image + ring + work + labels) / _GB

    tiles = 1
    if max_memory_gb is not None:
        tiles = next((number for number in range(1, most + 1) if memory(number) <= max_memory_gb), 0)
        if tiles == 0:
            raise ValueError(
                f"a scan of {' x '.join(map(str, scan_shape))} voxels, {' x '.join(map(str, network_shape))} at the "
                f"network's spacing, needs at least {memory(most):.3g} GB for {classes} classes; max_memory_gb is "
                f"{max_memory_gb:g}."
            )
    return Plan(axis, tile_axis, tiles, float(f"{memory(tiles):.3g}"))
