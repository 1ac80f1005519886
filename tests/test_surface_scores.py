"""Distances between surfaces are MONAI's; what MONAI leaves infinite is decided here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage

from monai_skelrec.surface_scores import diagonal, surface_distances

SPACING = (0.5, 0.75, 2.0)


def blob(seed, shape):
    return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2) > 0.03


@pytest.mark.parametrize("shape", [(40, 50), (16, 20, 18)], ids=["2D", "3D"])
@pytest.mark.parametrize("scaled", [False, True])
def test_distances_are_monais(shape, scaled):
    pred, reference = blob(1, shape), blob(2, shape)
    spacing = SPACING[: len(shape)] if scaled else None
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (pred, reference)]
    hausdorff = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
    average = compute_average_surface_distance(*tensors, include_background=True, symmetric=True, spacing=spacing)
    assert surface_distances(pred, reference, spacing) == pytest.approx((hausdorff.item(), average.item()), rel=1e-5)


def test_distances_of_shifted_planes_by_hand():
    pred, reference = np.zeros((2, 12, 5, 5), dtype=bool)
    reference[2], pred[5] = True, True
    assert surface_distances(pred, reference) == (3, 3)
    assert surface_distances(pred, reference, (0.5, 1, 1)) == (1.5, 1.5)


def test_cropping_changes_nothing():
    pred, reference = blob(3, (14, 15, 16)), blob(4, (14, 15, 16))
    around = [np.pad(mask, 5) for mask in (pred, reference)]
    assert surface_distances(*around, SPACING) == pytest.approx(surface_distances(pred, reference, SPACING))


def test_empty_masks_score_what_is_asked():
    mask, nothing = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert surface_distances(mask, nothing, absent=90) == surface_distances(nothing, mask, absent=90) == (90, 90)
    assert all(map(math.isnan, surface_distances(nothing, nothing, absent=90)))
    assert all(map(math.isnan, surface_distances(mask, nothing)))


def test_diagonal_is_in_the_unit_of_the_spacing():
    assert diagonal((3, 4)) == 5
    assert diagonal((3, 4, 12), (2, 2, 2)) == 26
