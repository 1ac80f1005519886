"""Breaks, false merges, missed and false centreline, counted by hand on label maps small enough to draw."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_skelrec.faults import find_faults, mask_faults


def vessel(length=30, dims=3):
    """A straight vessel along the first axis, 3 thick, from 2 to ``length`` - 2."""
    mask = np.zeros((length, *(9,) * (dims - 1)), bool)
    mask[(slice(2, -2), *(slice(3, 6),) * (dims - 1))] = True
    return mask


def count(pred, reference):
    faults = mask_faults(pred, reference)
    return [int(faults.missed.sum()), int(faults.false.sum()), len(faults.breaks), len(faults.merges)]


@pytest.mark.parametrize("dims", [2, 3])
def test_equal_masks_have_no_fault(dims):
    assert count(vessel(dims=dims), vessel(dims=dims)) == [0, 0, 0, 0]


@pytest.mark.parametrize("dims", [2, 3])
def test_gap_in_a_vessel_is_one_break_in_its_middle(dims):
    reference, pred = vessel(dims=dims), vessel(dims=dims)
    pred[10:15] = False
    assert count(pred, reference) == [5, 0, 1, 0]
    assert mask_faults(pred, reference).breaks.tolist() == [[12, *(4,) * (dims - 1)]]


def test_two_gaps_are_two_breaks():
    pred = vessel()
    pred[8:10] = pred[18:21] = False
    assert count(pred, vessel()) == [5, 0, 2, 0]


def test_exchanged_masks_exchange_breaks_and_merges():
    pred = vessel()
    pred[8:10] = pred[18:21] = False
    assert count(vessel(), pred) == [0, 5, 0, 2]


def test_missing_end_and_missing_vessel_are_no_breaks():
    pred = vessel()
    pred[:10] = False
    missed, _, breaks, _ = count(pred, vessel())
    assert missed > 0 and breaks == 0
    missed, _, breaks, _ = count(np.zeros_like(pred), vessel())
    assert missed == mask_faults(pred, vessel()).centerline.sum() and breaks == 0


def test_bridge_between_two_vessels_is_a_merge_and_no_break():
    reference = np.zeros((30, 16, 9), bool)
    reference[2:28, 2:5, 3:6] = reference[2:28, 11:14, 3:6] = True
    pred = reference.copy()
    pred[14:17, 5:11, 3:6] = True
    faults = mask_faults(pred, reference)
    assert len(faults.merges) == 1 and len(faults.breaks) == 0
    place = faults.merges[0]
    assert 14 <= place[0] < 17 and 5 <= place[1] < 11 and faults.false[tuple(place)]


def test_spur_is_false_centreline_but_no_merge():
    pred = np.pad(vessel(), ((0, 0), (0, 10), (0, 0)))
    reference = pred.copy()
    pred[14:17, 6:15, 3:6] = True
    _, false, breaks, merges = count(pred, reference)
    assert false >= 6 and breaks == merges == 0


def test_cut_ring_is_broken_though_it_stays_in_one_piece():
    distance = np.hypot(*(np.mgrid[:31, :31] - 15))
    ring = np.repeat((abs(distance - 10) <= 1.5)[..., None], 3, axis=2)
    pred = ring.copy()
    pred[13:18, 18:] = False
    assert ndimage.label(pred, np.ones((3, 3, 3)))[1] == 1
    faults = mask_faults(pred, ring)
    assert len(faults.breaks) == 1 and faults.breaks[0][1] > 18


def test_detour_of_two_voxels_is_no_break():
    reference, beside = vessel(), vessel()
    beside[12:15] = False
    broken = beside.copy()
    beside[11:16, 5:8, 3:6] = True  # the centreline leaves the prediction, which goes on beside it
    assert count(beside, reference)[2] == 0 < count(beside, reference)[0]
    assert count(broken, reference)[2] == 1


def test_classes_are_looked_at_one_by_one():
    """Where a vessel's middle has the wrong class, its own class is broken and the other one invented."""
    reference = vessel().astype(np.uint8)
    pred = reference.copy()
    pred[12:17] *= 2
    faults = find_faults(pred, reference)
    assert len(faults.breaks) == 1 and faults.missed.sum() == 5 and faults.false.sum() >= 3
    assert len(faults.merges) == 0


def test_surroundings_change_nothing():
    pred = vessel()
    pred[8:10] = False
    padded = [np.pad(mask, 4) for mask in (pred, vessel())]
    assert count(*padded) == count(pred, vessel())
    assert (mask_faults(*padded).breaks == mask_faults(pred, vessel()).breaks + 4).all()


def test_empty_masks_have_no_fault():
    empty = np.zeros((5, 5, 5), np.uint8)
    faults = find_faults(empty, empty)
    assert not faults.missed.any() and faults.breaks.shape == faults.merges.shape == (0, 3)
    assert count(empty > 0, empty > 0) == [0, 0, 0, 0]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape, got \(30, 9, 9\) and \(31, 9, 9\)"):
        mask_faults(vessel(), vessel(31))
