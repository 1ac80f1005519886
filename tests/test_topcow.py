"""TopCoW's numbers on maps counted by hand, in its degenerate cases, and on its own label maps."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage import measure, morphology

from monai_skelrec import aggregate_topcow, topcow_scores

DATA = Path(__file__).parents[2] / "shared" / "data"
MAPS = sorted((DATA / "topcow_roi").glob("*.nii.gz"))
BRAINS = sorted((DATA / "topbrain" / "labels").glob("*.nii.gz"))
UNIT = (1, 1, 1)
NUMBERS = ("Dice", "B0err", "HD", "HD95")


def empty(shape: tuple[int, int, int] = (16, 14, 12)) -> np.ndarray:
    return np.zeros(shape, np.uint8)


def line(label: int, length: int, row: int = 2) -> np.ndarray:
    found = empty((24, 24, 5))
    found[1 : 1 + length, row, 2] = label
    return found


def numbers(scores: dict) -> dict[str, float]:
    return {key: value for key, value in scores.items() if not isinstance(value, dict)}


def read(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj).astype(np.uint8), tuple(float(step) for step in image.header.get_zooms()[:3])


def test_solid_cube_against_itself_has_no_centreline_and_so_no_centreline_dice():
    cube = empty()
    cube[3:11, 3:11, 2:10] = 4
    assert numbers(topcow_scores(cube, cube, UNIT)) == {
        **{"Dice_R-ICA": 1, "B0err_R-ICA": 0, "HD_R-ICA": 0, "HD95_R-ICA": 0},
        **{"Dice_ClsAvgDice": 1, "B0err_ClsAvgB0err": 0, "HD_ClsAvgHD": 0, "HD95_ClsAvgHD95": 0},
        **{"Dice_MergedBin": 1, "B0err_MergedBin": 0, "HD_MergedBin": 0, "HD95_MergedBin": 0},
        **{"clDice": 0, "Betti_1_error_MergedBin": 0},
    }


def test_two_empty_maps_score_zero_everywhere():
    scores = topcow_scores(empty(), empty(), UNIT)
    assert set(numbers(scores)) == {"clDice", "Betti_1_error_MergedBin"} | {
        f"{name}_{kind}" for name in NUMBERS for kind in (f"ClsAvg{name}", "MergedBin")
    }
    assert set(numbers(scores).values()) == {0}
    assert {entry["Detection"] for entry in scores["all_detection_dicts"].values()} == {"TN"}
    assert scores["all_topo_dicts"]["match_verdict"] == {"anterior": True, "posterior": True}


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_map_costs_the_components_and_ninety_millimetres(swap):
    full = line(1, 5) + line(1, 3, row=9)
    pair = (empty(full.shape), full)
    found = numbers(topcow_scores(*(pair[::-1] if swap else pair), UNIT))
    for kind in ("BA", "MergedBin"):
        assert [found[f"{name}_{kind}"] for name in NUMBERS] == [0, 2, 90, 90]
    assert found["clDice"] == 0


def test_a_class_in_one_map_only_counts_in_the_average_and_a_class_in_neither_does_not():
    reference = line(1, 6) + line(8, 4, row=9)
    found = topcow_scores(line(1, 6), reference, UNIT)
    assert [found[f"{name}_R-Pcom"] for name in NUMBERS] == [0, 1, 90, 90]
    assert [found[f"{name}_ClsAvg{name}"] for name in NUMBERS] == [0.5, 0.5, 45, 45]
    assert found["Dice_MergedBin"] == 2 * 6 / (6 + 10)
    assert found["all_detection_dicts"]["8"]["Detection"] == "FN"
    assert "Dice_Acom" not in found


def test_distances_are_in_millimetres_along_each_axis():
    pred, reference = empty(), empty()
    pred[2, 3, 4] = reference[5, 3, 4] = 2
    pred[9, 9, 4] = reference[9, 13, 4] = 3
    found = topcow_scores(pred, reference, (0.5, 0.25, 9))
    assert (found["HD_R-PCA"], found["HD_L-PCA"], found["HD_ClsAvgHD"]) == (1.5, 1.0, 1.25)


def test_hd95_is_the_larger_directed_percentile_and_hd_the_largest_distance():
    # five voxels shared, a sixth ten rows away: the 95th percentile of 0 0 0 0 0 10 lies at 4.75
    pred = line(1, 5)
    pred[1, 12, 2] = 1
    for pair in ((pred, line(1, 5)), (line(1, 5), pred)):
        found = topcow_scores(*pair, (1, 0.5, 1))
        assert found["HD95_BA"] == pytest.approx(0.75 * 10 * 0.5)
        assert found["HD_BA"] == 5


def test_voxels_that_touch_at_a_corner_are_one_component():
    diagonal, apart = empty(), empty()
    diagonal[(2, 3, 4), (2, 3, 4), (2, 3, 4)] = 1
    apart[(2, 3, 5), (2, 3, 5), (2, 3, 5)] = 1
    assert topcow_scores(diagonal, apart, UNIT)["B0err_BA"] == 1


def test_loops_of_the_merged_mask_are_counted_as_in_2023():
    ring = empty()
    ring[2:7, 2:7, 3] = 5
    ring[3:6, 3:6, 3] = 0
    cut = ring.copy()
    cut[2, 3:6, 3] = 0
    found = topcow_scores(cut, ring, UNIT)
    assert (found["Betti_1_error_MergedBin"], found["B0err_MergedBin"]) == (1, 0)


def test_a_map_of_any_integers_scores_alike_and_stays_as_it_is():
    pred, reference = line(1, 5), line(1, 6)
    before = pred.copy(), reference.copy()
    expected = topcow_scores(pred, reference, UNIT)
    assert topcow_scores(pred.astype(np.int64), reference.astype(np.int16), UNIT) == expected
    np.testing.assert_array_equal([pred, reference], before)


@pytest.mark.parametrize("value", [13, 99, -1])
def test_values_that_topcow_does_not_know_are_refused(value):
    pred = line(1, 5).astype(np.int16)
    pred[0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"TopCoW scores label maps of the values .* pred holds \[{value}\]"):
        topcow_scores(pred, line(1, 5), UNIT)
    with pytest.raises(ValueError, match="but reference holds"):
        topcow_scores(line(1, 5), pred, UNIT)


def test_numbers_are_averaged_over_the_cases_that_have_them():
    cases = [topcow_scores(line(1, 6), line(1, 6), UNIT), topcow_scores(line(2, 3), line(1, 6) + line(2, 3, 9), UNIT)]
    found = aggregate_topcow(cases)
    assert (found["Dice_BA"]["mean"], found["Dice_BA"]["count"]) == (0.5, 2)
    assert (found["Dice_R-PCA"]["mean"], found["Dice_R-PCA"]["count"]) == (0, 1)
    assert found["HD_BA"]["mean"] == 45


def test_detections_are_pooled_over_cases_and_averaged_over_the_four_labels():
    reference, nothing = line(8, 4), empty((24, 24, 5))
    pairs = [(reference, reference), (reference, reference), (nothing, reference), (reference, nothing)]
    found = aggregate_topcow([topcow_scores(*pair, UNIT) for pair in pairs])["dect_avg"]
    assert found["8"] == {"label": "R-Pcom", "precision": 2 / 3, "recall": 2 / 3, "f1_score": 4 / 6}
    assert found["10"] == {"label": "Acom", "precision": 0, "recall": 0, "f1_score": 0}
    assert found["f1_score"] == pytest.approx({"mean": 4 / 6 / 4, "std": np.std([4 / 6, 0, 0, 0])})


def test_each_variant_of_the_references_weighs_alike():
    # posterior: twice the graph with a right Pcom, one of them missed; once the one without, found
    pcom, none = line(8, 4), line(1, 4)
    found = aggregate_topcow([topcow_scores(*pair, UNIT) for pair in ((pcom, pcom), (none, pcom), (none, none))])
    assert found["graph_var_bal_acc"] == {"anterior": 1, "posterior": 0.75}
    assert found["topo_var_bal_acc"] == {"anterior": 1, "posterior": 0.75}


def test_a_right_graph_is_not_a_matched_topology():
    broken = line(8, 4)
    broken[3, 2, 2] = 0
    found = aggregate_topcow([topcow_scores(broken, line(8, 4), UNIT)])
    assert found["graph_var_bal_acc"]["posterior"] == 1
    assert found["topo_var_bal_acc"]["posterior"] == 0


@pytest.mark.skipif(not MAPS, reason="the shared data are not here")
@pytest.mark.parametrize("path", MAPS, ids=lambda path: path.name.split(".")[0])
def test_a_real_map_against_itself_is_perfect(path):
    reference, spacing = read(path)
    scores = topcow_scores(reference, reference, spacing)
    for key, value in numbers(scores).items():
        assert value == (1 if key.startswith(("Dice", "clDice")) else 0), key
    assert scores["all_topo_dicts"]["match_verdict"] == {"anterior": True, "posterior": True}
    assert {entry["Detection"] for entry in scores["all_detection_dicts"].values()} <= {"TP", "TN"}


@pytest.mark.skipif(not MAPS, reason="the shared data are not here")
def test_a_real_map_perturbed_scores_as_libraries_count():
    reference, spacing = read(MAPS[0])
    pred = np.roll(reference, (1, 1), (0, 2))
    pred[pred == 8] = 0
    scores = topcow_scores(pred, reference, spacing)
    merged = pred > 0, reference > 0
    precision = merged[1][morphology.skeletonize(merged[0])].mean()
    sensitivity = merged[0][morphology.skeletonize(merged[1])].mean()
    assert scores["clDice"] == pytest.approx(2 * precision * sensitivity / (precision + sensitivity), abs=1e-12)
    for label, name in ((1, "BA"), (4, "R-ICA"), (12, "L-ACA")):
        masks = pred == label, reference == label
        components = [measure.label(mask, connectivity=3, return_num=True)[1] for mask in masks]
        assert scores[f"B0err_{name}"] == abs(components[0] - components[1])
        outer = [np.argwhere(mask & (ndimage.minimum_filter(mask, 3, mode="constant") == 0)) for mask in masks]
        pairs = cdist(*(points * spacing for points in outer))
        for share, key in ((95, "HD95"), (100, "HD")):
            ways = [np.percentile(pairs.min(axis=axis), share) for axis in (0, 1)]
            assert scores[f"{key}_{name}"] == pytest.approx(max(ways))
    assert (scores["HD_R-Pcom"], scores["all_detection_dicts"]["8"]["Detection"]) == (90, "FN")


@pytest.mark.skipif(not BRAINS, reason="the shared data are not here")
def test_swapping_left_and_right_in_a_whole_brain_loses_every_sided_vessel_but_no_merged_voxel():
    reference, spacing = read(BRAINS[0])
    reference[~np.isin(reference, [*range(13), 15])] = 0
    swap = np.arange(16, dtype=np.uint8)
    for right, left in ((2, 3), (4, 6), (5, 7), (8, 9), (11, 12)):
        swap[right], swap[left] = left, right
    scores = topcow_scores(swap[reference], reference, spacing)
    assert (scores["Dice_BA"], scores["Dice_MergedBin"], scores["clDice"]) == (1, 1, 1)
    assert {scores[f"Dice_{side}-{name}"] for side in "RL" for name in ("ICA", "MCA", "PCA")} == {0}
    assert scores["all_topo_dicts"]["match_verdict"] == {"anterior": False, "posterior": False}


@pytest.mark.skipif(not MAPS, reason="the shared data are not here")
def test_distances_are_those_of_itk_on_real_maps():
    sitk = pytest.importorskip("SimpleITK")
    reference, spacing = read(MAPS[0])
    pred = np.roll(reference, (2, 1), (0, 1))
    scores = topcow_scores(pred, reference, spacing)

    def contour(mask):
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8).T)
        image.SetSpacing(spacing)
        return sitk.LabelContour(image, fullyConnected=True)

    for label, name in ((1, "BA"), (6, "L-ICA")):
        contours = [contour(map_ == label) for map_ in (pred, reference)]
        found = []
        for start, goal in (contours, contours[::-1]):
            away = sitk.Abs(sitk.SignedMaurerDistanceMap(goal, squaredDistance=False, useImageSpacing=True))
            found.append(np.percentile(sitk.GetArrayFromImage(away)[sitk.GetArrayFromImage(start) > 0], 95))
        assert scores[f"HD95_{name}"] == pytest.approx(max(found), rel=1e-6)
