"""Where a training patch lies in its scan, and its voxels: the mathematics of :py:class:`monai_skelrec.RandPatchd`.

The recipe is nnU-Net's. Some patches are centred on a voxel of a class that is drawn among those present, the others
lie anywhere; some are turned, some are scaled. A patch is read once: a copy where nothing is turned, else one
interpolation of the voxels it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage

__all__ = ["cut_patch", "draw_matrix", "draw_start", "rotation_limits"]

_ORDERS = {"bilinear": 1, "nearest": 0}


def draw_start(
    random: np.random.RandomState,
    shape: Sequence[int],
    patch_size: Sequence[int],
    indices: Sequence[Any] = (),
    foreground_share: float = 0.0,
    wanted: int | None = None,
) -> np.ndarray:
    """Draw where a patch begins.

    Args:
        random: what is drawn with.
        shape: of the scan, voxels.
        patch_size: voxels.
        indices: for each class, flat indices (last axis fastest) of some of its voxels, background first; empty for a
            class that the scan does not hold.
        foreground_share: probability that the patch is centred on one of these voxels: of a class that is drawn among
            those present, background left out. A scan without foreground gives a patch anywhere.
        wanted: class that it is centred on, whatever the share; drawn after all where the scan does not hold it.

    Returns:
        First voxel on each axis. The patch lies inside the scan; where the scan is the smaller one, it lies in the
        middle of the patch and the start is negative.
    """
    room = np.subtract(shape, patch_size)
    present = [voxels for voxels in indices[1:] if len(voxels)]
    if wanted is not None and len(indices) > wanted and len(indices[wanted]):
        present, foreground_share = [indices[wanted]], 1.0
    if present and random.random_sample() < foreground_share:
        voxels = present[random.randint(len(present))]
        voxel = np.unravel_index(int(voxels[random.randint(len(voxels))]), tuple(shape))
        start = np.clip(np.asarray(voxel) - np.asarray(patch_size) // 2, 0, np.maximum(room, 0))
    else:
        start = np.asarray([random.randint(max(free, 0) + 1) for free in room])
    return np.where(room < 0, room // 2, start)


def rotation_limits(patch_size: Sequence[int]) -> tuple[float, tuple[int, ...]]:
    """nnU-Net's rule how far, and in which axes, a patch may be turned.

    A flat patch (longest edge more than three times the shortest) is turned in its plane only, where any angle will
    do; other patches by up to 30 degrees about each axis. Pictures are turned by any angle, oblong ones (longest edge
    more than 1.5 times the shortest) by up to 15 degrees.

    Args:
        patch_size: voxels; two or three axes.

    Returns:
        Largest angle in degrees, and the axes that are turned into each other.
    """
    longest, shortest = max(patch_size), min(patch_size)
    if len(patch_size) == 2:
        return (15.0 if longest > 1.5 * shortest else 180.0), (0, 1)
    if longest > 3 * shortest:
        flat = int(np.argmin(patch_size))
        first, second = (axis for axis in range(3) if axis != flat)
        return 180.0, (first, second)
    return 30.0, (0, 1, 2)


def draw_matrix(
    random: np.random.RandomState,
    dims: int,
    axes: Sequence[int],
    *,
    max_angle: float,
    scale_range: tuple[float, float],
    rotate: bool,
    scale: bool,
) -> np.ndarray:
    """Draw how a patch lies in its scan: the matrix that takes a step in the patch to a step in the scan.

    Args:
        random: what is drawn with.
        dims: 2 or 3.
        axes: that are turned and scaled, two or three of them.
        max_angle: degrees; every angle up to it is as likely, to either side, about each axis.
        scale_range: of the one factor for all ``axes``; above 1 the patch shows more of the scan, smaller.
        rotate: whether it is turned.
        scale: whether it is scaled.

    Returns:
        Shape (dims, dims); the identity where neither is wanted. Steps are voxels, as in nnU-Net.
    """
    matrix = np.eye(dims)
    if rotate:
        pairs = [(a, b) for at, a in enumerate(axes) for b in axes[at + 1 :]]
        for a, b in pairs:
            angle = np.deg2rad(random.uniform(-max_angle, max_angle))
            turn = np.eye(dims)
            turn[[a, b], [a, b]] = np.cos(angle)
            turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
            matrix = turn @ matrix
    if scale:
        factors = np.ones(dims)
        factors[list(axes)] = random.uniform(*scale_range)
        matrix = matrix * factors
    return matrix


def cut_patch(
    volumes: Sequence[torch.Tensor],
    modes: Sequence[str],
    start: np.ndarray,
    patch_size: Sequence[int],
    matrix: np.ndarray | None = None,
) -> list[torch.Tensor]:
    """Read one patch out of volumes that share a grid; what lies outside them is 0.

    Args:
        volumes: each (C, H, W[, D]), of any dtype.
        modes: "bilinear" or "nearest" for each; not used without a matrix.
        start: first voxel of the patch on each axis, as if it were not turned; negative before the first voxel.
        patch_size: voxels.
        matrix: turns and scales the patch about its centre, see :py:func:`draw_matrix`; None copies voxels.

    Returns:
        Patches (C, *patch_size), copies of the dtype of their volumes.
    """
    size = np.asarray(patch_size)
    shape = np.asarray(volumes[0].shape[1:])
    if matrix is None:
        low, high = np.clip(start, 0, shape), np.clip(start + size, 0, shape)
        inside, there = (slice(None), *map(slice, low - start, high - start)), (slice(None), *map(slice, low, high))
        copies = [volume.new_zeros((len(volume), *patch_size)) for volume in volumes]
        for copy, volume in zip(copies, volumes):
            copy[inside] = volume[there]
        return copies
    half = (size - 1) / 2
    patches = []
    for volume, mode in zip(volumes, modes, strict=True):
        patch = np.empty((len(volume), *patch_size), dtype=volume.numpy().dtype)
        for channel, out in zip(volume.numpy(), patch):
            ndimage.affine_transform(
                channel,
                matrix,
                offset=start + half - matrix @ half,
                output=out,
                output_shape=tuple(patch_size),
                order=_ORDERS[mode],
                mode="grid-constant",
                prefilter=False,
            )
        patches.append(torch.from_numpy(patch))
    return patches
