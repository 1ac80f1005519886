"""Step "label map -> scores", the mathematics: distances between the surfaces of boolean masks, by MONAI."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance

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
    ``percentile=95`` and ``compute_average_surface_distance`` with ``symmetric=True``, from one search instead of two.
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
    with warnings.catch_warnings():
        # MONAI's own call of a function of its own that it has deprecated
        warnings.simplefilter("ignore")
        _, found, _ = get_edge_surface_distance(
            cast(Any, torch.from_numpy(np.ascontiguousarray(pred))),
            cast(Any, torch.from_numpy(np.ascontiguousarray(reference))),
            spacing=None if spacing is None else [float(edge) for edge in spacing],
            symmetric=True,
        )
    # NumPy's percentile has no limit of 2^24 values, as torch's has
    directed = [distances.double().numpy() for distances in found]
    return max(float(np.percentile(each, 95)) for each in directed), float(np.concatenate(directed).mean())


def diagonal(shape: Sequence[int], spacing: Sequence[float] | None = None) -> float:
    """From corner to corner of an image, the largest distance there can be; in the unit of ``spacing``."""
    return float(np.linalg.norm(np.multiply(shape, 1.0 if spacing is None else spacing)))
