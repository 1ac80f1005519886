"""Branches of tubes, counted by hand on lines one pixel wide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from shapes import vessel_of_three_classes

from monai_skelrec import TubeBranches, TubeBranchesd, tubed_skeleton
from monai_skelrec.branches import tube_branches


def tee(arm: int = 6) -> np.ndarray:
    """A line of 13 pixels in row 1, and one of ``arm`` steps down from its middle."""
    tube = np.zeros((9, 13), np.uint8)
    tube[1] = 1
    tube[1 : 2 + arm, 6] = 1
    return tube


def test_each_arm_of_a_tee_is_a_branch():
    numbers = tube_branches(tee())
    left, right, down = numbers[1, :6], numbers[1, 7:], numbers[2:8, 6]
    assert [set(arm.tolist()) for arm in (left, down, right)] == [{left[0]}, {down[0]}, {right[0]}]
    assert {int(left[0]), int(right[0]), int(down[0])} == {1, 2, 3}
    np.testing.assert_array_equal(numbers > 0, tee() > 0)
    assert numbers.dtype == np.int32


def test_short_spur_is_no_branch_and_does_not_cut_the_line_in_two():
    spurred = tee(arm=3)
    assert tube_branches(spurred).max() == 1
    assert tube_branches(spurred, min_length=3).max() == 3
    np.testing.assert_array_equal(tube_branches(spurred) > 0, spurred > 0)


def test_short_piece_that_lies_alone_counts_with_the_nearest_branch():
    tube = np.zeros((12, 12), np.uint8)
    tube[0], tube[11] = 1, 1
    tube[9, 2:5] = 1
    numbers = tube_branches(tube)
    assert numbers.max() == 2 and set(numbers[9, 2:5].tolist()) == {numbers[11, 0]}


def test_class_of_short_branches_only_has_its_longest():
    tube = np.zeros((5, 5), np.uint8)
    tube[0, :2], tube[4, :4], tube[2, 4] = 1, 1, 1
    np.testing.assert_array_equal(tube_branches(tube), tube)


def test_lone_pixels_are_one_branch():
    tube = np.diag([1, 0, 1, 0, 1])
    np.testing.assert_array_equal(tube_branches(tube), tube)


def test_ring_is_a_branch():
    ring = np.zeros((9, 9), np.uint8)
    ring[1:8, 1:8] = 1
    ring[2:7, 2:7] = 0
    np.testing.assert_array_equal(tube_branches(ring), ring)


def test_classes_are_numbered_alone():
    """A vessel of three classes in 3D: three branches, each the whole tube of its class."""
    label, _ = vessel_of_three_classes()
    tube = tubed_skeleton(label)
    np.testing.assert_array_equal(tube_branches(tube), tube)
    assert tube_branches((tube > 0).astype(np.uint8)).max() == 1


def test_tube_belongs_to_the_nearest_centreline():
    """Arms seven pixels thick: what is further from the middle of the crossing than half of that is in its own arm."""
    label = np.zeros((41, 41), np.uint8)
    label[17:24], label[:, 17:24] = 1, 1
    numbers = tube_branches(tubed_skeleton(label))
    arms = numbers[:14, 15:26], numbers[27:, 15:26], numbers[15:26, :14], numbers[15:26, 27:]
    assert sorted(np.unique(arm[arm > 0]).tolist() for arm in arms) == [[1], [2], [3], [4]]


def test_empty_tube_has_no_branches():
    assert not tube_branches(np.zeros((4, 4, 4), np.uint8)).any()


def test_transform_keeps_the_container_and_the_input():
    tube = tee()[np.newaxis]
    for given in (tube, torch.from_numpy(tube), MetaTensor(torch.from_numpy(tube), affine=2 * torch.eye(4))):
        before = given.copy() if isinstance(given, np.ndarray) else given.clone()
        numbers = TubeBranches()(given)
        assert type(numbers) is type(given) and numbers.shape == given.shape
        assert (np.asarray(given) == np.asarray(before)).all()
        np.testing.assert_array_equal(np.asarray(numbers)[0], tube_branches(tee()))
    assert numbers.affine[0, 0] == 2


def test_every_channel_is_numbered_alone():
    both = np.stack([tee(), tee(arm=3)])
    numbers = TubeBranches(min_length=4)(both)
    assert numbers.shape == both.shape and [channel.max() for channel in numbers] == [3, 1]


def test_dictionary_transform_adds_a_key():
    data = {"skeleton": torch.from_numpy(tee(arm=3)[np.newaxis]), "other": torch.zeros(1, 2, 2, dtype=torch.int32)}
    out = TubeBranchesd("skeleton")(data)
    assert set(data) == {"skeleton", "other"} and out["branches"].max() == 1
    assert TubeBranchesd("skeleton", "n", min_length=2)(data)["n"].max() == 3
    assert set(TubeBranchesd(["skeleton", "none"], ["a", "b"], allow_missing_keys=True)(data)) == {*data, "a"}


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="min_length must be at least 0, got -1"):
        TubeBranches(-1)
    with pytest.raises(ValueError, match=r"needs a channel and 2 or 3 axes, \(C, H, W\[, D\]\), got shape \(9, 13\)"):
        TubeBranches()(tee())
    with pytest.raises(ValueError, match="branch_keys must name one key for each of"):
        TubeBranchesd(["a", "b"], "n")
