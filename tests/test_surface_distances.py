"""Surfaces counted by hand, and distances against every pair of voxels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from monai_skelrec.surface_distances import distances_both_ways, surface


@pytest.mark.parametrize(
    "connectivity, expected",
    [
        # of 3x3x3 voxels without one corner, the middle keeps six full faces but loses a corner
        pytest.param(1, 25, id="faces"),
        pytest.param(3, 26, id="corners"),
    ],
)
def test_connectivity_says_which_neighbours_count(connectivity, expected):
    mask = np.zeros((5, 5, 5), bool)
    mask[1:4, 1:4, 1:4] = True
    mask[1, 1, 1] = False
    assert surface(mask, connectivity=connectivity, edge=True).sum() == expected


@pytest.mark.parametrize(
    "edge, expected", [pytest.param(True, 3 * 3 * 4 - 2, id="with edge"), pytest.param(False, 9, id="without edge")]
)
def test_edge_says_whether_a_mask_that_is_cut_off_has_a_surface_there(edge, expected):
    mask = np.zeros((3, 3, 6), bool)
    mask[..., :4] = True
    assert surface(mask, connectivity=3, edge=edge).sum() == expected


@pytest.mark.parametrize("spacing", [None, (0.4, 1.0, 2.5)])
def test_distances_are_those_of_the_nearest_of_all_pairs(spacing):
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 9, 8, 7)) > 0.9
    size = np.ones(3) if spacing is None else np.array(spacing)
    pairs = cdist(np.argwhere(first) * size, np.argwhere(second) * size)
    found = distances_both_ways(first, second, spacing)
    for distances, expected in zip(found, (pairs.min(axis=1), pairs.min(axis=0)), strict=True):
        np.testing.assert_allclose(np.sort(distances), np.sort(expected))
