"""Repairs of label maps, counted by hand on arrays small enough to draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_skelrec import circle_of_willis
from monai_skelrec.postprocessing import PostProcessLabelMapd, drop_islands, keep_largest, postprocess

NAMES = ["background", "vessel", "nerve"]


def drawn(*rows: str) -> np.ndarray:
    return np.array([[0 if character == "." else int(character) for character in row] for row in rows], np.uint8)


ISLANDS = drawn("111.11..1", "111......", ".........", "22.2.....", "...2..2..")


def test_the_largest_components_of_each_class_stay():
    assert (
        keep_largest(ISLANDS, {1: 1, 2: 1}) == drawn("111......", "111......", ".........", "22.......", ".........")
    ).all()
    assert (
        keep_largest(ISLANDS, {1: 2}) == drawn("111.11...", "111......", ".........", "22.2.....", "...2..2..")
    ).all()


def test_islands_below_a_volume_go():
    kept = drop_islands(ISLANDS, 2)
    assert (kept == drawn("111.11...", "111......", ".........", "22.2.....", "...2.....")).all()


def test_volume_counts_in_the_unit_of_the_spacing():
    assert np.array_equal(drop_islands(ISLANDS, 2, (0.5, 2.0)), drop_islands(ISLANDS, 2))
    assert np.array_equal(drop_islands(ISLANDS, 0.2, (0.1, 1.0)), drop_islands(ISLANDS, 2))


def test_the_largest_component_of_a_class_is_no_island():
    assert (drop_islands(drawn("1.22"), 100) == drawn("1.22")).all()


def test_an_empty_label_map_stays_empty():
    nothing = np.zeros((4, 4, 4), np.uint8)
    steps = {"min_volume": 3.0, "largest": 1, "contacts": [("vessel", "nerve")], "max_gap": 3.0}
    assert not postprocess(nothing, NAMES, np.zeros((3, 4, 4, 4)), **steps).any()


def test_without_a_step_nothing_changes_and_nothing_is_shared():
    out = postprocess(ISLANDS, NAMES)
    assert np.array_equal(out, ISLANDS) and out is not ISLANDS and out.dtype == ISLANDS.dtype


@pytest.mark.parametrize(
    "steps",
    [
        {"min_volume": 3.0},
        {"largest": 1},
        {"largest": {"vessel": 1}},
        {"max_gap": 3.0},
        {"contacts": [("vessel", "nerve")], "isolated": "drop"},
    ],
    ids=lambda steps: next(iter(steps)),
)
def test_every_step_changes_something_and_leaves_its_input(steps):
    label = drawn("111.112.1", "111......", "......2..", "22.2.....", "2..2..2.1", "1........")
    before = label.copy()
    probabilities = np.full((3, *label.shape), 0.3)
    out = postprocess(label, NAMES, probabilities, **steps)
    assert np.array_equal(label, before)
    assert not np.array_equal(out, label)


def test_fragments_are_joined_before_islands_go():
    label = drawn("11111.11")
    probabilities = np.stack([1 - 0.4 * np.ones(label.shape), 0.4 * np.ones(label.shape)])
    names = ["background", "vessel"]
    assert (postprocess(label, names, probabilities, max_gap=3, min_volume=3) == drawn("11111111")).all()
    assert (postprocess(label, names, probabilities, min_volume=3) == drawn("11111...")).all()


def test_components_kept_can_be_told_by_name():
    assert np.array_equal(postprocess(ISLANDS, NAMES, largest={"nerve": 1}), keep_largest(ISLANDS, {2: 1}))
    with pytest.raises(ValueError, match="'canal' is none of the classes background, vessel, nerve"):
        postprocess(ISLANDS, NAMES, largest={"canal": 1})


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="at least 1 component must be kept, got 0"):
        keep_largest(ISLANDS, {1: 0})
    with pytest.raises(ValueError, match="min_volume must be at least 0, got -1"):
        drop_islands(ISLANDS, -1)
    with pytest.raises(ValueError, match="max_gap needs the probabilities"):
        postprocess(ISLANDS, NAMES, max_gap=3)
    with pytest.raises(ValueError, match="tables of contacts of topcow, got 'heart'"):
        postprocess(ISLANDS, NAMES, contacts="heart")


def test_the_transform_does_what_the_function_does_in_mm():
    label = circle_of_willis(2)
    label[label == 15] = 13
    label[:2, :2, :2] = 5
    names = [str(index) for index in range(14)]
    affine = torch.diag(torch.tensor([0.5, 0.5, 2.0, 1.0]))
    image = MetaTensor(torch.from_numpy(label)[None].float(), affine=affine)
    transform = PostProcessLabelMapd("pred", names, min_volume=5.0)
    out = transform({"pred": image})["pred"]
    assert isinstance(out, MetaTensor) and out.dtype == image.dtype and torch.equal(out.affine, image.affine)
    # eight voxels of 0.5 mm3
    assert not out[0, :2, :2, :2].any() and torch.equal(image[0, :2, :2, :2], torch.full((2, 2, 2), 5.0))
    np.testing.assert_array_equal(out[0].numpy(), postprocess(label, names, spacing=(0.5, 0.5, 2.0), min_volume=5.0))
    assert PostProcessLabelMapd("pred", names, min_volume=4.0)({"pred": image})["pred"][0, 0, 0, 0] == 5


def test_the_transform_reads_the_probabilities():
    label = drawn("1111..1111")[None]
    probabilities = np.stack([np.full(label.shape[1:], 0.6), np.full(label.shape[1:], 0.4)])
    transform = PostProcessLabelMapd("pred", ["background", "vessel"], "probability", max_gap=4.0)
    out = transform({"pred": label, "probability": probabilities})["pred"]
    assert isinstance(out, np.ndarray) and (out == 1).all()


def test_the_transform_takes_one_channel():
    with pytest.raises(ValueError, match=r"'pred' must be one channel of class indices, got shape \(2, 3, 3\)"):
        PostProcessLabelMapd("pred", NAMES)({"pred": np.zeros((2, 3, 3))})
