"""Step "scan's grid <-> network's grid": where the voxels of one lie on an axis of the other, linear interpolation.

Both grids have the same axes up to their order, direction and spacing, so interpolation is one axis after the other,
and every voxel is computed in the same way whatever part of the volume it is computed with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import nibabel
import numpy as np
import torch
from monai.data.utils import compute_shape_offset, zoom_affine

__all__ = ["AxisMap", "GridMap", "interpolate", "map_grids"]

# MONAI's Spacing leaves an axis as it is when its spacing is this near to the wanted one, in mm
_SAME_SPACING = 1e-3
# voxels that one step of an interpolation holds, at least one slice
BLOCK = 2**18
# cosine between two axes of a scan above which it is no right angle any more
_RIGHT_ANGLE = 1e-3


class AxisMap(NamedTuple):
    """For each index of one grid's axis its two neighbours on the other grid's, and the weight of the second."""

    low: torch.Tensor
    high: torch.Tensor
    weight: torch.Tensor

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return not bool(self.weight.any()) and torch.equal(self.low, torch.arange(len(self.low)))


class GridMap(NamedTuple):
    """How the grid of a scan and the grid of the network belong together.

    Attributes:
        order: for each axis of the network the axis of the scan that it is.
        shape: of the network's grid.
        to_network: for each axis of the network, where its voxels lie on the scan's.
        to_scan: for each axis of the network, where the voxels of the scan's axis lie on it.
        sheared: whether the axes of the scan are not at right angles.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]
    to_network: list[AxisMap]
    to_scan: list[AxisMap]
    sheared: bool


def map_grids(
    shape: Sequence[int], affine: np.ndarray, spacing: Sequence[float] | None, canonical: bool = True
) -> GridMap:
    """Find the grid on which the network sees a scan: axes in the order right, anterior, superior, and its spacing.

    As MONAI's ``Orientation("RAS")`` and ``Spacing`` do it: first voxels coincide. A scan whose axes are not at right
    angles (a tilted gantry) is taken along its own axes, where ``Spacing`` would straighten it.

    Args:
        shape: of the scan, without channels.
        affine: of the scan, from indices to RAS+ coordinates.
        spacing: of the network's grid in mm; None: the scan's own.
        canonical: whether axes are turned; pictures are taken as they are.
    """
    dims = len(shape)
    affine = np.asarray(affine, float)
    edges = np.linalg.norm(affine[:dims, :dims], axis=0)
    cosines = (affine[:dims, :dims] / edges).T @ (affine[:dims, :dims] / edges) - np.eye(dims)
    sheared = bool(np.abs(cosines).max() > _RIGHT_ANGLE)
    turned = nibabel.orientations.io_orientation(affine) if canonical else np.stack([np.arange(dims), np.ones(dims)], 1)
    order = tuple(int(source) for source in np.argsort(turned[:, 0]))
    counts = [shape[source] for source in order]
    steps = np.ones(dims)
    sizes = list(counts)
    if spacing is not None:
        wanted = np.array([spacing[axis] for axis in range(dims)], float)
        own = edges[list(order)]
        wanted = np.where(np.abs(own - wanted) <= _SAME_SPACING, own, wanted)
        steps = wanted / own
        sizes = np.round((np.array(counts) - 1) / steps + 1).astype(int).tolist()
        if not sheared:  # MONAI's own rounding, which training has seen
            straight = affine @ nibabel.orientations.inv_ornt_aff(turned, shape)
            sizes = compute_shape_offset(counts, straight, zoom_affine(straight, wanted, diagonal=False))[0].tolist()
    to_network, to_scan = [], []
    for source, count, size, step in zip(order, counts, sizes, steps):
        inward, outward = np.arange(size) * step, np.arange(count) / step
        if turned[source, 1] < 0:
            inward, outward = count - 1 - inward, outward[::-1]
        to_network.append(_axis_map(inward, count))
        to_scan.append(_axis_map(outward, size))
    return GridMap(order, tuple(sizes), to_network, to_scan, sheared)


def _axis_map(positions: np.ndarray, size: int) -> AxisMap:
    """Neighbours of positions on an axis; beyond its ends the last voxel goes on."""
    inside = np.clip(positions, 0, size - 1)
    # a position that is whole but for rounding needs one neighbour only
    inside = np.where(np.abs(inside - np.rint(inside)) < 1e-9, np.rint(inside), inside)
    low = np.floor(inside).astype(np.int64)
    weight = (inside - low).astype(np.float32)
    high = low + (weight > 0)
    return AxisMap(torch.from_numpy(low), torch.from_numpy(high), torch.from_numpy(weight))


def interpolate(volume: torch.Tensor, axis: int, axis_map: AxisMap) -> torch.Tensor:
    """Take a tensor's values at other places of one axis, linearly.

    Args:
        volume: floats of any shape.
        axis: which one.
        axis_map: places on it.

    Returns:
        A tensor with ``len(axis_map.low)`` along ``axis``; ``volume`` itself when nothing changes.
    """
    if len(axis_map.low) == volume.shape[axis] and axis_map.is_identity:
        return volume
    low, high, weight = (values.to(volume.device) for values in axis_map)
    shape = list(volume.shape)
    shape[axis] = len(low)
    # blocks along another axis, the first that will do: no second volume is held, and the cache suffices
    others = [each for each in range(volume.ndim) if each != axis]
    total = math.prod(shape)
    across = next(
        (each for each in others if total <= BLOCK * shape[each]),
        max(others, key=lambda each: shape[each], default=axis),
    )
    count = shape[across] if others else 1
    step = max(1, BLOCK * count // max(1, total))
    weight = weight.reshape([-1 if each == axis else 1 for each in range(volume.ndim)])
    is_mean = bool(weight.any())
    result = volume.new_empty(shape)
    for first in range(0, count, step):
        size = min(step, count - first)
        block, part = (each.narrow(across, first, size) if others else each for each in (volume, result))
        near = _take(block, axis, low)
        if is_mean:
            torch.lerp(near, _take(block, axis, high), weight.expand_as(near), out=part)
        else:
            part.copy_(near)
    return result


def _take(volume: torch.Tensor, axis: int, places: torch.Tensor) -> torch.Tensor:
    """Values at some places of one axis."""
    if axis < volume.ndim - 1:
        return volume.index_select(axis, places)
    # along the last axis index_select takes several times as long
    return volume.gather(axis, places.expand(*volume.shape[:-1], -1))
