"""Step "label map -> scores", the mathematics: distances between surfaces of boolean masks, as MONAI defines them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .surface_distances import distances_both_ways, surface

__all__ = ["diagonal", "surface_distances"]


def surface_distances(
    pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None = None, absent: float = math.nan
) -> tuple[float, float]:
    r"""Score how far the surfaces of two boolean masks lie from each other, shape HW[D]; lower is better.

    A surface voxel is one with a background voxel beside a face of it; outside the array is background. With
    :math:`d_p` the distances from the prediction's surface voxels to the nearest of the reference, and :math:`d_r`
    those the other way round,

    .. math::
        HD_{95} = \max(P_{95}(d_p), P_{95}(d_r)), \quad ASSD = mean(d_p \cup d_r)

    where :math:`P_{95}` is the 95th percentile, interpolated. These are MONAI's ``compute_hausdorff_distance`` with
    ``percentile=95`` and ``compute_average_surface_distance`` with ``symmetric=True`` (which round to float32), from
    one search instead of two and without a warning for every call.
    Where one mask is empty MONAI's Hausdorff distance is infinite (NaN with a percentile) and so is its surface
    distance; an infinite score would spoil every mean, and a NaN would drop the failure from it.

    Args:
        pred: prediction.
        reference: reference of the same shape.
        spacing: edges of a voxel; None for 1.
        absent: what both distances are where exactly one mask is empty.

    Returns:
        HD95 and average symmetric surface distance in the unit of ``spacing``; NaN where both masks are empty.
    """
    empty = [not mask.any() for mask in (pred, reference)]
    if any(empty):
        return (math.nan, math.nan) if all(empty) else (absent, absent)
    surfaces = [surface(mask, connectivity=1, edge=True) for mask in (pred, reference)]
    directed = distances_both_ways(surfaces[0], surfaces[1], spacing)
    return max(float(np.percentile(each, 95)) for each in directed), float(np.concatenate(directed).mean())


def diagonal(shape: Sequence[int], spacing: Sequence[float] | None = None) -> float:
    """From corner to corner of an image, the largest distance there can be; in the unit of ``spacing``."""
    return float(np.linalg.norm(np.multiply(shape, 1.0 if spacing is None else spacing)))
