"""Mask -> list of its voxels -> connected components; time and memory grow with the list, not with the array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Voxels", "connect", "connect_keys"]


@dataclass(frozen=True)
class Voxels:
    """The voxels of a mask, in the order in which they lie in memory.

    Args:
        shape: of the mask.
        coordinates: (dimensions, n) array indices.
        keys: (n,) ascending numbers; a step along axis ``a`` changes the key by ``steps[a]``.
        steps: (dimensions,) key differences, such that a step over the border meets no other voxel's key.
    """

    shape: tuple[int, ...]
    coordinates: np.ndarray
    keys: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, margin: int = 1) -> Voxels:
        """List the true voxels of ``mask``; up to ``margin`` steps from any of them have keys of their own."""
        # axes from the slowest to the fastest: MONAI's readers hand over arrays in column order
        axes = np.argsort([-abs(stride) for stride in mask.strides], kind="stable")
        rest = np.flatnonzero(np.ascontiguousarray(mask.transpose(axes)))
        coordinates = np.empty((mask.ndim, rest.size), np.int64)
        steps = np.empty(mask.ndim, np.int64)
        step = 1
        for axis in axes[::-1]:
            rest, coordinates[axis] = np.divmod(rest, mask.shape[axis])
            steps[axis] = step
            step *= mask.shape[axis] + margin
        return cls(mask.shape, coordinates, steps @ coordinates, steps)

    def where(self, chosen: np.ndarray) -> Voxels:
        """Keep the voxels at which ``chosen``, (n,) booleans, is true."""
        return Voxels(self.shape, self.coordinates[:, chosen], self.keys[chosen], self.steps)


def connect(voxels: Voxels, part: np.ndarray) -> np.ndarray:
    """Number the connected components (26 neighbours, 8 in 2D); voxels of different parts do not connect.

    Args:
        voxels: n voxels.
        part: (n,) integers.

    Returns:
        (n,) component numbers from 0.
    """
    return connect_keys(voxels.keys, voxels.steps, part)


def connect_keys(keys: np.ndarray, steps: np.ndarray, part: np.ndarray) -> np.ndarray:
    """:py:func:`connect` for voxels of which no more is known than ``keys`` and ``steps`` of :py:class:`Voxels`."""
    if keys.size == 0:
        return np.zeros(0, np.int64)
    # voxels that follow each other along the fastest axis form runs, and only runs are compared
    begins = np.concatenate(([True], (np.diff(keys) != 1) | (np.diff(part) != 0)))
    starts = np.flatnonzero(begins)
    head, tail, part = keys[starts], keys[np.append(starts[1:], keys.size) - 1], part[starts]
    slow = np.sort(steps)[1:]
    lines = [slow[0]] if slow.size == 1 else [slow[0], slow[1] - slow[0], slow[1], slow[1] + slow[0]]
    edges = [np.zeros((2, 0), np.int64)]
    for line in lines:
        first = np.searchsorted(tail, head + line - 1)
        count = np.searchsorted(head, tail + line + 1, side="right") - first
        one = np.repeat(np.arange(head.size), count)
        other = np.arange(one.size) + np.repeat(first - np.cumsum(count) + count, count)
        edges.append(np.stack([one, other])[:, part[one] == part[other]])
    pairs = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(head.size, head.size))
    component = connected_components(graph, directed=False)[1].astype(np.int64)
    return component[np.cumsum(begins) - 1]
