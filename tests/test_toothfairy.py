"""The ToothFairy challenges' numbers on masks counted by hand, and where their own code divides by nothing."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage.morphology import skeletonize

from monai_skelrec import aggregate_toothfairy, toothfairy2_scores, toothfairy3_scores, toothfairy_scores

UNIT = (1, 1, 1)
NOTHING = np.zeros((12, 12, 12), np.uint8)


def cube(size: int = 4) -> np.ndarray:
    found = NOTHING.copy()
    found[3 : 3 + size, 3 : 3 + size, 3 : 3 + size] = 1
    return found


def line(length: int, value: int = 1, row: int = 2) -> np.ndarray:
    found = np.zeros((24, 24, 5), np.uint8)
    found[1 : 1 + length, row, 2] = value
    return found


def random_map(seed: int, values: list[int]) -> np.ndarray:
    """Boxes of random size, place and value, some of them at the edge."""
    rng = np.random.default_rng(seed)
    found = np.zeros((12, 13, 11), np.uint8)
    for _ in range(8):
        start = rng.integers(-1, found.shape)
        found[tuple(slice(max(at, 0), at + size) for at, size in zip(start, rng.integers(1, 8, 3)))] = rng.choice(
            values
        )
    return found


def test_a_cube_without_centreline_counts_as_found():
    scores = toothfairy_scores(cube(), cube(), UNIT)
    assert scores == {"DiceCoefficient": 1, "HausdorffDistance95": 0, "clDice": 1, "Betti_0": 0, "Betti_1": 0}


@pytest.mark.parametrize("pair", [(NOTHING, cube(3)), (cube(3), NOTHING)], ids=["pred empty", "reference empty"])
def test_one_empty_mask_lies_as_far_away_as_single_precision_goes(pair):
    scores = toothfairy_scores(*pair, UNIT)
    assert (scores["DiceCoefficient"], scores["clDice"], scores["Betti_0"]) == (0, 0, 1)
    assert scores["HausdorffDistance95"] == np.float32(1.8446743e19)


def test_two_empty_masks_have_neither_overlap_nor_distance():
    scores = toothfairy_scores(NOTHING, NOTHING, UNIT)
    assert math.isnan(scores["DiceCoefficient"]) and math.isnan(scores["HausdorffDistance95"])
    assert (scores["clDice"], scores["Betti_0"], scores["Betti_1"]) == (1, 0, 0)
    found = aggregate_toothfairy([scores, toothfairy_scores(cube(), cube(), UNIT)])
    assert (found["DiceCoefficient"]["mean"], found["DiceCoefficient"]["count"]) == (1, 1)
    assert (found["clDice"]["mean"], found["clDice"]["count"]) == (1, 2)


def test_distances_of_both_directions_are_pooled_in_millimetres():
    # 5 + 6 distances, one of them ten rows of half a millimetre: the 95th percentile lies at 9.5, half way to it
    pred = line(5)
    pred[1, 12, 2] = 1
    assert toothfairy_scores(pred, line(5), (1, 0.5, 3))["HausdorffDistance95"] == pytest.approx(2.5)


def test_a_mask_that_is_cut_off_by_the_edge_has_no_surface_there():
    pred, reference = np.zeros((2, 6, 6, 8), np.uint8)
    pred[..., :4] = 1
    reference[..., :3] = 1
    assert toothfairy_scores(pred, reference, (1, 1, 0.3))["HausdorffDistance95"] == pytest.approx(0.3)
    whole = np.ones_like(pred)
    assert toothfairy_scores(whole, reference, UNIT)["HausdorffDistance95"] == np.float32(1.8446743e19)
    assert math.isnan(toothfairy_scores(whole, whole, UNIT)["HausdorffDistance95"])


@pytest.mark.parametrize("seed", range(6))
def test_distances_in_millimetres_are_those_of_all_pairs_of_surface_voxels(seed):
    pred, reference, spacing = random_map(seed, [1]), random_map(seed + 50, [1]), (0.3, 0.4, 0.7)
    outer = [mask & (ndimage.minimum_filter(mask, 3, mode="constant", cval=1) == 0) for mask in (pred, reference)]
    pairs = cdist(*(np.argwhere(surface) * spacing for surface in outer))
    pooled = np.concatenate([pairs.min(axis=0), pairs.min(axis=1)])
    assert toothfairy_scores(pred, reference, spacing)["HausdorffDistance95"] == pytest.approx(
        np.percentile(pooled, 95)
    )


def test_components_and_loops_are_compared():
    ring = NOTHING.copy()
    ring[2:7, 2:7, 3] = 1
    ring[3:6, 3:6, 3] = 0
    scores = toothfairy_scores(ring, ring, UNIT)
    assert (scores["Betti_0"], scores["Betti_1"]) == (0, 0)
    cut, more = ring.copy(), ring.copy()
    cut[2, 3:6, 3] = 0
    more[9, 9, 9] = 1
    assert toothfairy_scores(cut, ring, UNIT)["Betti_1"] == 1
    assert toothfairy_scores(more, ring, UNIT)["Betti_0"] == 1


def test_centreline_dice_is_that_of_the_order_z_y_x():
    differ = 0
    for seed in range(20):
        pred, reference = random_map(seed, [1]), random_map(seed + 100, [1])
        values = {}
        for axes, pair in (("xyz", (pred.T, reference.T)), ("zyx", (pred, reference))):
            shares = []
            for mask, other in (pair, pair[::-1]):
                centreline = skeletonize(mask)
                shares.append(other[centreline].mean() if centreline.any() else 1.0)
            expected = 2 * shares[0] * shares[1] / sum(shares) if any(shares) else 0
            values[axes] = toothfairy_scores(pred, reference, UNIT, axes)["clDice"]
            assert values[axes] == pytest.approx(expected)
        differ += values["xyz"] != values["zyx"]
    assert differ > 5


def test_spacing_belongs_to_the_axes_of_the_arrays():
    pred, reference = line(1), line(1, row=7)
    for axes in ("xyz", "zyx"):
        assert toothfairy_scores(pred, reference, (9, 0.2, 9), axes)["HausdorffDistance95"] == pytest.approx(1)


def test_what_toothfairy_1_cannot_score_is_refused():
    with pytest.raises(
        ValueError, match=r"ToothFairy 1 scores label maps of the values \[0, 1\], but pred holds \[3\]"
    ):
        toothfairy_scores(3 * cube(), cube(), UNIT)
    with pytest.raises(ValueError, match='axes must be "xyz" or "zyx"'):
        toothfairy_scores(cube(), cube(), UNIT, "xzy")


@pytest.mark.parametrize(
    "score, dice, hd95, labels",
    [
        pytest.param(toothfairy2_scores, "DiceCoefficient", "HausdorffDistance95", 42, id="2"),
        pytest.param(toothfairy3_scores, "Dice Average", "HD95 Average", 46, id="3"),
    ],
)
def test_labels_in_neither_map_are_perfect_and_a_label_in_one_costs_the_diagonal(score, dice, hd95, labels):
    both = score(line(5, 3), line(5, 3))
    assert (both[dice], both[hd95], len(both)) == (1, 0, 2 * labels + 2)
    one = score(line(5, 3), line(5, 3) + line(4, 4, row=9))
    diagonal = math.sqrt(24**2 + 24**2 + 5**2)
    assert (one["Dice Right Inferior Alveolar Canal"], one["HD95 Right Inferior Alveolar Canal"]) == (0, diagonal)
    assert one[dice] == pytest.approx((labels - 1) / labels)
    assert one[hd95] == pytest.approx(diagonal / labels)


def test_teeth_are_named_by_quadrant():
    for value, name in ((18, "Upper Right Third Molar (Wisdom Tooth)"), (31, "Lower Left Central Incisor")):
        assert toothfairy2_scores(line(5, value), line(4, value))[f"Dice {name}"] == pytest.approx(8 / 9)


def test_values_that_are_no_label_are_background():
    assert toothfairy2_scores(line(5, 99), line(3, 150))["DiceCoefficient"] == 1


def test_pulps_are_one_label_in_toothfairy_3_and_none_in_2():
    found = toothfairy3_scores(line(5, 111), line(5, 148))
    assert (found["Dice Pulp"], found["Dice Average"]) == (1, 1)
    # between the pulps of two quadrants there is no tooth
    assert toothfairy3_scores(line(5, 119), line(5, 148))["Dice Pulp"] == 0
    assert "Dice Pulp" not in toothfairy2_scores(line(5, 111), line(5, 148))


@pytest.mark.parametrize("seed", range(6))
def test_distances_in_voxels_are_those_of_all_pairs_of_surface_voxels(seed):
    pred, reference = random_map(seed, [0, 3, 15]), random_map(seed + 50, [0, 3, 15])
    found = toothfairy2_scores(pred, reference)
    for value, name in ((3, "Left Inferior Alveolar Canal"), (15, "Upper Right Second Premolar")):
        outer = []
        for label_map in (pred, reference):
            padded = np.pad(label_map, 1) == value
            faces = [np.roll(padded, way, axis) for axis, way in product(range(3), (-1, 1))]
            outer.append(np.argwhere(padded & ~np.logical_and.reduce(faces)))
        if not all(map(len, outer)):
            continue
        pairs = cdist(*outer)
        pooled = np.concatenate([pairs.min(axis=0), pairs.min(axis=1)])
        assert found[f"HD95 {name}"] == pytest.approx(np.percentile(pooled, 95))


def test_a_single_slice_is_scored_as_a_picture():
    pred, reference = np.zeros((2, 1, 9, 9), np.uint8)
    pred[0, 1:8, 1:8] = reference[0, 1:8, 1:8] = 1
    # in 2D the inside of the square is no surface; the four voxels around a hole lie two voxels from its edge
    pred[0, 4, 4] = 0
    found = toothfairy2_scores(pred, reference)["HD95 Lower Jawbone"]
    inner = np.array([2, 2, 2, 2])
    assert found == pytest.approx(np.percentile(np.concatenate([np.zeros(24 + 24), inner]), 95))
    only = toothfairy2_scores(np.zeros_like(pred), reference)["HD95 Lower Jawbone"]
    assert only == pytest.approx(math.hypot(9, 9))
