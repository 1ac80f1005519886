"""Step "label map -> scores", the mathematics: surface voxels of masks, and how far one surface lies from another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

__all__ = ["distances_both_ways", "surface"]


def surface(mask: np.ndarray, *, connectivity: int, edge: bool) -> np.ndarray:
    """Mark the voxels of a mask that have a voxel of background beside them.

    Args:
        mask: booleans, shape HW[D].
        connectivity: 1 looks across faces only, ``mask.ndim`` across edges and corners too.
        edge: whether what lies outside the array is background, so that a mask that touches the edge has a surface
            there.

    Returns:
        Booleans of the same shape.
    """
    around = ndimage.generate_binary_structure(mask.ndim, connectivity)
    return mask & ~ndimage.binary_erosion(mask, around, border_value=0 if edge else 1)


def distances_both_ways(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance from each voxel of either surface to the nearest voxel of the other.

    Args:
        first: booleans, shape HW[D], with one true voxel at least.
        second: as ``first``.
        spacing: size of a voxel along each axis; None counts voxels.

    Returns:
        One distance a voxel of ``first`` and one a voxel of ``second``, in the unit of ``spacing``, in no particular
        order.
    """
    size = np.ones(first.ndim) if spacing is None else np.asarray(spacing, float)
    return _distances(first, second, size), _distances(second, first, size)


def _distances(start: np.ndarray, goal: np.ndarray, size: np.ndarray) -> np.ndarray:
    found = np.zeros(np.count_nonzero(start))
    # what the two share lies at distance 0, and needs no search
    apart = np.argwhere(start & ~goal)
    if len(apart):
        found[: len(apart)] = KDTree(np.argwhere(goal) * size).query(apart * size)[0]
    return found
