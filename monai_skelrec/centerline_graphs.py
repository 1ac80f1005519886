"""Centreline -> graph: its voxels, the edges between them, and branches from end or branch point to the next one.

What is measured in lengths (scores) and what is written to files (outputs) is this one graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.sparse import coo_array
from scipy.spatial import cKDTree

from .voxels import Voxels

__all__ = ["CenterlineGraph", "centerline_edges", "centerline_graph", "inscribed_radii"]


@dataclass(frozen=True)
class CenterlineGraph:
    """A centreline as a graph.

    Attributes:
        points: array indices of the n voxels, shape (n, dimensions).
        edges: pairs of point numbers, each once, shape (number, 2); see :py:func:`centerline_edges`.
        nodes: numbers of the points that have not exactly two edges: ends, branch points, and lone voxels.
        branches: numbers of points in order, each from a node to a node with points of two edges between them. A ring
            without a node is a branch too; it begins and ends at its first voxel in memory. Every edge lies in exactly
            one branch.
    """

    points: np.ndarray
    edges: np.ndarray
    nodes: np.ndarray
    branches: tuple[np.ndarray, ...]


def centerline_edges(voxels: Voxels) -> np.ndarray:
    """Pairs of neighbouring voxels (8 neighbours in 2D, 26 in 3D) of a centreline.

    Two neighbours have no edge where a third voxel lies in the box that they span: a corner is not counted twice, along
    its legs and across. What was connected stays connected.

    Args:
        voxels: of a line one voxel wide.

    Returns:
        Numbers of voxels, shape (edges, 2), each pair once.
    """
    dimensions = len(voxels.shape)
    found = [np.zeros((0, 2), np.int64)]
    for offset in product((-1, 0, 1), repeat=dimensions):
        if offset <= (0,) * dimensions:
            continue  # the same pairs, from their other ends
        place, there = _listed(voxels, voxels.keys + voxels.steps @ np.array(offset))
        one, other = np.flatnonzero(there), place[there]
        for step in product(*((0, side) if side else (0,) for side in offset)):
            if any(step) and step != offset and one.size:
                free = ~_listed(voxels, voxels.keys[one] + voxels.steps @ np.array(step))[1]
                one, other = one[free], other[free]
        found.append(np.stack([one, other], axis=1))
    return np.concatenate(found)


def centerline_graph(centerline: np.ndarray) -> CenterlineGraph:
    """Find the branches of a centreline.

    Args:
        centerline: booleans one voxel wide, shape HW[D].

    Raises:
        ValueError: when ``centerline`` is not 2D or 3D.
    """
    if centerline.ndim not in (2, 3):
        raise ValueError(f"centerline must be 2D or 3D, got shape {centerline.shape}.")
    voxels = Voxels.of(centerline)
    edges = centerline_edges(voxels)
    number = voxels.keys.size
    both = np.concatenate([edges, edges[:, ::-1]])
    table = coo_array((np.ones(len(both), np.int8), (both[:, 0], both[:, 1])), shape=(number, number)).tocsr()
    table.sort_indices()
    degree = np.diff(table.indptr)
    nodes = np.flatnonzero(degree != 2)
    listed, ends = table.indices.tolist(), table.indptr.tolist()
    neighbours = [listed[start:end] for start, end in zip(ends, ends[1:])]
    branches = _trace(neighbours, nodes.tolist(), set(np.flatnonzero(degree == 2).tolist()))
    return CenterlineGraph(voxels.coordinates.T, edges, nodes, tuple(map(np.array, branches)))


def inscribed_radii(mask: np.ndarray, points: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Radius at some voxels of a mask: from the voxel's centre to that of the nearest background voxel.

    Of tubes drawn with a radius of 1 voxel or more it is 0 to 0.25 voxels too small, because a centreline of whole
    voxels runs beside the middle; a line one voxel wide has radius 1.

    Args:
        mask: booleans, shape HW[D]; outside the array is background.
        points: array indices of voxels of the mask, shape (n, dimensions).
        spacing: edges of a voxel; None for 1.

    Returns:
        Shape (n,), in the unit of ``spacing``.
    """
    size = np.ones(mask.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    mask = np.pad(mask, 1)
    # the background voxel that is nearest to any voxel of the mask has a voxel of the mask beside one of its faces
    beside = np.zeros_like(mask)
    for axis in range(mask.ndim):
        along = (slice(None),) * axis
        beside[(*along, slice(1, None))] |= mask[(*along, slice(None, -1))]
        beside[(*along, slice(None, -1))] |= mask[(*along, slice(1, None))]
    shell = np.argwhere(beside & ~mask)
    return np.asarray(cKDTree(shell * size).query((points + 1) * size)[0])


def _trace(neighbours: Sequence[Sequence[int]], nodes: Sequence[int], passed: set[int]) -> list[list[int]]:
    """Walk from node to node; what is left of ``passed``, the points of two edges, are rings."""
    branches: list[list[int]] = []

    def walk(branch: list[int]) -> None:
        while branch[-1] in passed:
            passed.remove(branch[-1])
            first, second = neighbours[branch[-1]]
            branch.append(second if first == branch[-2] else first)
        branches.append(branch)

    for node in nodes:
        for step in neighbours[node]:
            # between two nodes there is nothing to be passed: the lower number draws the branch
            if step in passed or (len(neighbours[step]) != 2 and node < step):
                walk([node, step])
    for start in sorted(passed):
        if start in passed:
            passed.remove(start)
            walk([start, neighbours[start][0]])
    return branches


def _listed(voxels: Voxels, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the keys stand in the list, and whether they do."""
    place = np.searchsorted(voxels.keys, keys)
    place = np.minimum(place, max(voxels.keys.size - 1, 0))
    return place, (voxels.keys[place] == keys) if voxels.keys.size else np.zeros(keys.shape, bool)
