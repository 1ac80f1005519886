"""Measures of two masks that no file of their own holds: centreline Dice of hollow vessels, and what 2D leaves out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from monai_skelrec.mask_measures import MASK_MEASURES, OF_CAVITIES, measure_masks

BOTH = ["centerline_dice", "filled_centerline_dice"]


def vessel(cavity=False):
    """A straight vessel 7 voxels thick, with or without an enclosed cavity of 1 x 1 x 14."""
    mask = np.zeros((15, 15, 30), bool)
    mask[4:11, 4:11, 3:27] = True
    mask[7, 7, 8:22] &= not cavity
    return mask


def test_hollow_prediction_is_scored_by_its_shell_unless_it_is_filled():
    wide = ndimage.binary_dilation(vessel(), iterations=1)
    wide[:, :, 20:] = False
    hollow = wide.copy()
    hollow[7, 7, 6:18] = False
    plain, filled = (measure_masks(mask, vessel(), BOTH) for mask in (wide, hollow))
    assert plain["filled_centerline_dice"] == plain["centerline_dice"] == filled["filled_centerline_dice"]
    assert filled["centerline_dice"] != plain["centerline_dice"]
    # scikit-image and SciPy say the same
    line, whole = skeletonize(ndimage.binary_fill_holes(hollow)), skeletonize(vessel())
    precision, sensitivity = vessel()[line].mean(), wide[whole].mean()
    assert filled["filled_centerline_dice"] == pytest.approx(2 * precision * sensitivity / (precision + sensitivity))


def test_hollow_reference_is_filled_too():
    assert measure_masks(vessel(), vessel(cavity=True), BOTH)["filled_centerline_dice"] == 1
    assert measure_masks(vessel(), vessel(cavity=True), BOTH)["centerline_dice"] < 1


def test_tunnel_is_no_cavity():
    tunnel = vessel()
    tunnel[7, 7, :] = False
    scores = measure_masks(tunnel, vessel(), BOTH)
    assert scores["filled_centerline_dice"] == scores["centerline_dice"]


@pytest.mark.parametrize("pred, expected", [(vessel() & False, 0.0), (vessel(), 1.0)])
def test_empty_masks(pred, expected):
    assert measure_masks(pred, vessel(), BOTH)["filled_centerline_dice"] == expected
    assert np.isnan(measure_masks(pred & False, vessel() & False, BOTH)["filled_centerline_dice"])


def test_pictures_have_no_cavities():
    picture = vessel()[7]
    for other in (picture, picture & False):
        assert set(measure_masks(picture, other)) == set(MASK_MEASURES) - set(OF_CAVITIES)
    assert set(measure_masks(picture & False, picture & False)) == set(MASK_MEASURES) - set(OF_CAVITIES)
