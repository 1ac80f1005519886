"""Lengths, radii, joined branches and confused sides, counted by hand on arrays small enough to draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from monai_skelrec.tree_scores import centerline_length, count_joined, label_contacts, radius_error, side_confusion


def drawn(*rows: str) -> np.ndarray:
    return np.array([[int(character) for character in row.replace(".", "0")] for row in rows])


LINE = drawn(".......", ".11111.", ".......") > 0
DIAGONAL = np.eye(4, dtype=bool)
CORNER = drawn("111", "..1", "..1") > 0
RING = drawn("111", "1.1", "111") > 0


@pytest.mark.parametrize(
    "centerline, length",
    [
        pytest.param(LINE, 4, id="five voxels, four edges"),
        pytest.param(DIAGONAL, 3 * math.sqrt(2), id="diagonal"),
        pytest.param(CORNER, 4, id="a corner is not cut across"),
        pytest.param(RING, 8, id="a ring keeps its loop"),
        pytest.param(np.zeros((3, 3), bool), 0, id="nothing"),
        pytest.param(np.pad(np.ones((1, 1), bool), 1), 0, id="a lone voxel has no length"),
        pytest.param(np.eye(3, dtype=bool)[:, :, None] & np.eye(3, dtype=bool), 2 * math.sqrt(3), id="3D diagonal"),
    ],
)
def test_length_is_that_of_the_edges(centerline, length):
    assert centerline_length(centerline) == pytest.approx(length)


def test_length_follows_the_spacing_of_each_axis():
    assert centerline_length(LINE, spacing=(10, 0.5)) == pytest.approx(2)
    assert centerline_length(DIAGONAL, spacing=(3, 4)) == pytest.approx(15)


@pytest.mark.parametrize("seed", range(5))
def test_inside_and_outside_add_up_to_the_whole(seed):
    random = np.random.default_rng(seed)
    line, mask = random.random((9, 8, 7)) < 0.1, random.random((9, 8, 7)) < 0.5
    parts = centerline_length(line, mask, (1, 2, 3)), centerline_length(line, ~mask, (1, 2, 3))
    assert sum(parts) == pytest.approx(centerline_length(line, spacing=(1, 2, 3)))
    turned = centerline_length(line[:, ::-1].transpose(2, 0, 1), spacing=(3, 1, 2))
    assert turned == pytest.approx(centerline_length(line, spacing=(1, 2, 3)))


def test_edge_to_a_missed_voxel_counts_half():
    assert centerline_length(LINE, LINE & (np.arange(7) > 3)) == pytest.approx(1.5)


@pytest.mark.parametrize("spacing", [None, (0.4, 0.6, 2.0)])
def test_radius_error_is_that_of_distance_transforms(spacing):
    random = np.random.default_rng(1)
    reference = ndimage.gaussian_filter(random.standard_normal((20, 18, 16)), 2) > 0
    pred = ndimage.binary_dilation(reference)
    line = reference & (random.random(reference.shape) < 0.2)
    # outside the array is background
    radii = [ndimage.distance_transform_edt(np.pad(mask, 1), spacing)[1:-1, 1:-1, 1:-1] for mask in (pred, reference)]
    expected = np.abs(radii[0] - radii[1])[line].mean()
    assert radius_error(pred, reference, line, spacing) == pytest.approx(expected)


def test_radius_error_of_a_tube_one_voxel_too_thick_all_around_is_one():
    reference, pred = np.zeros((2, 11, 30), dtype=bool)
    reference[4:7], pred[3:8] = True, True
    line = np.zeros_like(pred)
    line[5, 8:20] = True
    assert radius_error(pred, reference, line) == 1
    assert radius_error(pred, reference, line, spacing=(0.5, 0.5)) == 0.5


def test_radius_error_counts_matched_voxels_only():
    assert math.isnan(radius_error(~LINE, LINE, LINE))
    assert math.isnan(radius_error(LINE, np.zeros_like(LINE), np.zeros_like(LINE)))


TWO = drawn("11111", ".....", "11111") > 0


@pytest.mark.parametrize(
    "pred, joined",
    [
        pytest.param(TWO, 0, id="apart as in the reference"),
        pytest.param(drawn("11111", "..1..", "11111") > 0, 1, id="one bridge"),
        pytest.param(drawn("11111", "1.1.1", "11111") > 0, 1, id="three bridges join two components once"),
        pytest.param(np.ones((3, 5), bool), 1, id="swallowed"),
        pytest.param(drawn("1....", ".....", "....1") > 0, 0, id="two pieces of two"),
        pytest.param(np.zeros((3, 5), bool), 0, id="nothing"),
    ],
)
def test_joined_components(pred, joined):
    assert count_joined(pred, TWO) == joined


def test_joined_components_do_not_depend_on_memory_order():
    pred = np.asfortranarray(np.ones((3, 5), bool))
    assert count_joined(pred, TWO) == 1


def test_contacts_are_pairs_of_classes_that_are_neighbours():
    label = drawn("11..3", "..2..", ".....", "4....")
    assert label_contacts(label) == {(1, 2)}
    assert label_contacts(np.stack([label, np.roll(label, 1, axis=1)])) == {(1, 2), (1, 3), (2, 3)}
    assert label_contacts(np.zeros((3, 3), int)) == set()


def test_side_confusion_is_a_share_of_the_centreline():
    partner = LINE & (np.arange(7) < 3)
    assert side_confusion(partner, LINE) == pytest.approx(2 / 5)
    assert math.isnan(side_confusion(partner, np.zeros_like(LINE)))
