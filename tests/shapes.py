"""Label maps small enough to draw, with known centrelines; shared by the tests."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy import ndimage


def bar(*size: int) -> np.ndarray:
    """A solid block of class 1 with a voxel of background all round."""
    return np.pad(np.ones(size, np.uint8), 1)


def ball_chain(label: np.ndarray, centres: np.ndarray, radius: float, value: int) -> None:
    """Write ``value`` into ``label`` wherever a centre is within ``radius``."""
    seeds = np.ones(label.shape, bool)
    seeds[tuple(centres.T)] = False
    label[ndimage.distance_transform_edt(seeds) <= radius] = value


def jaw_with_canal() -> tuple[np.ndarray, np.ndarray]:
    """Jaw (class 1) around a canal (class 2) of radius 3 that runs beside the jaw's own axis.

    Returns:
        Label (30, 36, 132) and the (n, 3) voxels of the canal's centreline.
    """
    label = np.zeros((30, 36, 132), np.int16)
    label[2:28, 2:34, 2:130] = 1
    along = np.arange(9, 123)
    centres = np.stack([np.rint(10 + 4 * np.sin(along / 16)), np.rint(9 + along / 9), along], axis=1).astype(int)
    ball_chain(label, centres, 3, 2)
    return label, centres


def vessel_of_three_classes() -> tuple[np.ndarray, np.ndarray]:
    """A straight vessel 7 voxels thick, class 1, then 2, then 3.

    Returns:
        Label (11, 11, 60) and the (n, 3) voxels of the centreline.
    """
    label = np.zeros((11, 11, 60), np.uint8)
    centres = np.stack([np.full(50, 5), np.full(50, 5), np.arange(5, 55)], axis=1)
    ball_chain(label, centres, 3, 1)
    label[..., 20:40] *= 2
    label[..., 40:] *= 3
    return label, centres


def random_mask(generator: np.random.Generator, dims: int, kind: str) -> np.ndarray:
    """A random mask of up to 15 voxels an axis: "bars", "blobs", "tubes" or "noise"; any may touch the border."""
    shape = generator.integers(1, 16, dims)
    mask = np.zeros(shape, bool)
    if kind == "bars":
        for _ in range(generator.integers(1, 4)):
            begin = generator.integers(0, shape)
            mask[tuple(slice(a, a + b) for a, b in zip(begin, generator.integers(1, 9, dims)))] = True
    elif kind == "blobs":
        smooth = ndimage.gaussian_filter(generator.random(shape), generator.uniform(0.5, 1.5))
        mask = smooth >= np.quantile(smooth, generator.uniform(0.2, 0.95))
    elif kind == "tubes":
        for _ in range(generator.integers(1, 3)):
            ends = generator.random((2, dims)) * (shape - 1)
            path = np.rint(ends[0] + np.linspace(0, 1, 40)[:, np.newaxis] * (ends[1] - ends[0])).astype(int)
            mask[tuple(path.T)] = True
        mask = ndimage.binary_dilation(mask, iterations=int(generator.integers(1, 3)))
    else:
        mask = generator.random(shape) < generator.uniform(0.05, 0.95)
    return mask


def orientations(array: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """All 48 (2D: 8) turned and mirrored copies, each with the (n, dims) original index of its voxels, in C order."""
    index = np.arange(array.size).reshape(array.shape)
    out = []
    for order in _permutations(array.ndim):
        for flip in product((1, -1), repeat=array.ndim):
            turn = tuple(slice(None, None, step) for step in flip)
            origin = np.stack(np.unravel_index(index.transpose(order)[turn].ravel(), array.shape), axis=1)
            out.append((np.ascontiguousarray(array.transpose(order)[turn]), origin))
    return out


def _permutations(dims: int) -> list[tuple[int, ...]]:
    return [order for order in product(range(dims), repeat=dims) if len(set(order)) == dims]
