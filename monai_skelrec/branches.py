"""Tubed skeleton -> its branches, numbered, so that a loss can count each of them once. Experimental.

A plain function on NumPy arrays, and its MONAI coat.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, ensure_tuple_rep
from scipy.spatial import cKDTree

from .centerline_graphs import CenterlineGraph, centerline_graph
from .intake import to_numpy
from .skeletons import tubed_skeleton
from .voxels import Voxels

__all__ = ["TubeBranches", "TubeBranchesD", "TubeBranchesDict", "TubeBranchesd", "tube_branches"]


def tube_branches(tube: np.ndarray, min_length: int = 5) -> np.ndarray:
    """Number the branches of a tubed skeleton, each class alone.

    The tube of each class is thinned again. Short spurs are cut off its centreline, which then falls into branches,
    from an end or a branch point to the next one, see :py:class:`monai_skelrec.centerline_graphs.CenterlineGraph`. A
    voxel of the tube belongs to the branch whose centreline is nearest.

    Args:
        tube: class on the tube, 0 elsewhere, shape (H, W) or (H, W, D), integers or booleans.
        min_length: steps along the centreline. Shorter branches, such as the spurs and joints that thinning leaves, are
            none: their voxels count with the nearest longer branch of their class; where none is longer, with the
            longest.

    Returns:
        int32 of the same shape: numbers from 1, one for each branch of each class, 0 outside the tube.

    Raises:
        ValueError: when ``tube`` is not 2D or 3D, or holds anything but integers from 0.

    Example:
        >>> tube_branches(np.array([[1, 1, 1, 0, 2], [0, 0, 0, 0, 2]]), min_length=1)
        array([[1, 1, 1, 0, 2],
               [0, 0, 0, 0, 2]], dtype=int32)
    """
    centerline = tubed_skeleton(tube, 0, groups="each")
    voxels = Voxels.of(tube != 0).coordinates
    value, central = tube[tuple(voxels)], centerline[tuple(voxels)] != 0
    number = np.zeros(value.shape, np.int32)
    for each in np.unique(value):
        own = value == each
        number[own] = _nearest_branch(voxels[:, own], central[own], min_length) + number.max() + 1
    out = np.zeros(tube.shape, np.int32)
    out[tuple(voxels)] = number
    return out


def _nearest_branch(voxels: np.ndarray, central: np.ndarray, min_length: int) -> np.ndarray:
    """Number from 0 of the branch nearest to each voxel, (dimensions, n), of which ``central`` are the centreline."""
    voxels = voxels - voxels.min(axis=1, keepdims=True)
    centerline = np.zeros(voxels.max(axis=1) + 1, bool)
    centerline[tuple(voxels[:, central])] = True
    graph = centerline_graph(centerline)
    spurs = _spurs(graph, min_length)
    if spurs.size:
        # what a spur had cut in two is one branch
        centerline[tuple(graph.points[spurs].T)] = False
        graph = centerline_graph(centerline)
    longest = max((len(branch) - 1 for branch in graph.branches), default=0)
    branches = [branch for branch in graph.branches if len(branch) - 1 >= min(min_length, longest)]
    if len(branches) < 2:
        return np.zeros(voxels.shape[1], np.int32)
    number = np.repeat(np.arange(len(branches), dtype=np.int32), [len(branch) for branch in branches])
    nearest = cKDTree(graph.points[np.concatenate(branches)]).query(voxels.T)[1]
    return np.asarray(number[nearest])


def _spurs(graph: CenterlineGraph, min_length: int) -> np.ndarray:
    """Numbers of the points of short branches from a branch point to a free end, without the branch point."""
    degree = np.bincount(graph.edges.ravel(), minlength=len(graph.points))
    found = [np.zeros(0, np.int64)]
    for branch in graph.branches:
        ends = degree[branch[[0, -1]]]
        if len(branch) - 1 < min_length and ends.min() == 1 and ends.max() > 2:
            found.append(branch[degree[branch] <= 2])
    return np.concatenate(found)


class TubeBranches(Transform):
    """Number the branches of a tubed skeleton, as the losses' third target. Experimental.

    Args:
        min_length: see :py:func:`monai_skelrec.branches.tube_branches`.

    Raises:
        ValueError: when ``min_length`` is negative.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(self, min_length: int = 5) -> None:
        if min_length < 0:
            raise ValueError(f"min_length must be at least 0, got {min_length}.")
        self.min_length = min_length

    def __call__(self, tube: NdarrayOrTensor) -> NdarrayOrTensor:
        """
        Args:
            tube: tubed skeleton, (C, H, W[, D]); class indices in one channel, or 0 and 1 in each of several.

        Returns:
            Numbers of the branches, int32, in the container, shape, device and metadata of ``tube``; each channel is
            numbered alone.

        Raises:
            ValueError: when ``tube`` has another number of dimensions.
        """
        if tube.ndim not in (3, 4):
            raise ValueError(
                f"TubeBranches needs a channel and 2 or 3 axes, (C, H, W[, D]), got shape {tuple(tube.shape)}."
            )
        numbers = np.stack([tube_branches(channel, self.min_length) for channel in to_numpy(tube)])
        return convert_to_dst_type(numbers, tube, dtype=np.int32)[0]


class TubeBranchesd(MapTransform):
    """Dictionary-based wrapper of :py:class:`TubeBranches`; put it right after :py:class:`TubedSkeletond`.

    Stack label, tubed skeleton and branches on the channel axis (``ConcatItemsd``) for
    :py:class:`monai_skelrec.FocusedRecallLoss` with ``over="branch"``.

    Args:
        keys: tubed skeletons.
        branch_keys: where the numbers go, one for each of ``keys``.
        min_length: see :py:func:`monai_skelrec.branches.tube_branches`.
        allow_missing_keys: leave out keys that a sample does not have.

    Raises:
        ValueError: when ``branch_keys`` does not give each of ``keys`` a name of its own, or as
            :py:class:`TubeBranches`.
    """

    backend = TubeBranches.backend

    def __init__(
        self,
        keys: KeysCollection,
        branch_keys: KeysCollection = "branches",
        min_length: int = 5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.branch_keys = ensure_tuple_rep(branch_keys, len(self.keys))
        if len(set(self.branch_keys)) < len(self.keys):
            raise ValueError(f"branch_keys must name one key for each of {self.keys}, got {branch_keys}.")
        self.transform = TubeBranches(min_length)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, branch_key in self.key_iterator(d, self.branch_keys):
            d[branch_key] = self.transform(d[key])
        return d


TubeBranchesD = TubeBranchesDict = TubeBranchesd
