"""Folders of retinas, roads and cracks as they are published: which files are a case, and what their masks mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_data import PICTURE_FILES, files_of, save_picture, write_data
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImaged
from scipy.io import savemat

from monai_skelrec import CrackMaskReader, MapLabelValuesd, list_cases, plan_unet
from monai_skelrec.crack_masks import read_crack_mask
from monai_skelrec.label_maps import read_label_map, to_class_indices
from monai_skelrec.pairs import read_pair

SHARED = Path(__file__).parents[2] / "shared" / "data"
TABLE_4 = {"drive": ([512, 512], 2), "roads": ([512, 512], 12), "cracks": ([224, 224], 65)}


def names(cases):
    return [case["name"] for case in cases]


def facts_of(task):
    return ConfigParser.load_config_files(files_of(f"{task}.yaml"))


@pytest.mark.parametrize("task", TABLE_4)
def test_patch_and_batch_are_those_of_the_papers_table_4_and_the_network_follows_the_patch(task):
    facts = facts_of(task)
    assert (facts["patch_size"], facts["batch_size"]) == TABLE_4[task]
    plan = plan_unet(facts["patch_size"])
    assert facts["filters"] == plan["filters"]
    assert [[stride] * 2 for stride in facts["strides"]] == plan["strides"]
    assert [[kernel] * 2 for kernel in facts["kernel_size"]] == plan["kernel_size"]


@pytest.mark.parametrize(
    "task, part, name", [("drive", "training", "21"), ("roads", "train", "r1_15"), ("cracks", ".", "c1")]
)
def test_published_folder_and_its_part_give_the_same_cases(task, part, name, tmp_path):
    root = write_data(task, tmp_path, count=2)
    layout = facts_of(task)["layout"]
    cases = list_cases(layout, str(root), 2)
    assert len(cases) == 2 and cases[0]["name"] == name
    assert cases[0]["image"] == str(root / PICTURE_FILES[task][0].format(1))
    assert [case["label"] for case in list_cases(layout, str(root / part), 2)] == [case["label"] for case in cases]


def test_picture_without_its_mask_is_named(tmp_path):
    root = write_data("drive", tmp_path, count=2)
    (root / "training/1st_manual/21_manual1.gif").unlink()
    with pytest.raises(ValueError, match="21_training.tif has no label: expected one for case '21'"):
        list_cases("drive", str(root), 2)


def test_folders_may_have_other_names(tmp_path):
    picture = np.full((8, 6), 255, np.uint8)
    for folder in ("photos", "noisy"):
        save_picture(tmp_path / folder / "7.png", picture)
    assert names(list_cases("folder", str(tmp_path), 2, case_folders=["photos", "noisy"])) == ["7"]
    (tmp_path / "photos" / "7.png").rename(tmp_path / "photos" / "7.txt")
    (tmp_path / "noisy" / "7.png").unlink()
    with pytest.raises(ValueError, match="expected photos/NAME and noisy/NAME ending in one of"):
        list_cases("folder", str(tmp_path), 2, case_folders=["photos", "noisy"])


@pytest.mark.parametrize("layout, folders", [("drive", ["a", "b"]), ("folder", ["a"]), ("folder", "ab")])
def test_folders_that_a_layout_cannot_have_are_refused(layout, folders, tmp_path):
    with pytest.raises(ValueError, match="case_folders must name the folder of the images and that of the labels"):
        list_cases(layout, str(tmp_path), 2, case_folders=folders)


# --- CrackForest ------------------------------------------------------------------------------------------------------


@pytest.fixture
def crackforest(tmp_path):
    """Two pictures of which one is annotated; 2 is the crack, 1 pavement, 3 and 4 something else."""
    segmentation = np.array([[1, 2, 1], [3, 2, 4]], np.uint8)
    for name in ("001", "002"):
        save_picture(tmp_path / "image" / f"{name}.jpg", np.zeros((2, 3, 3), np.uint8))
    (tmp_path / "groundTruth").mkdir()
    content = {"Segmentation": segmentation, "Boundaries": np.zeros_like(segmentation)}
    savemat(tmp_path / "groundTruth" / "001.mat", {"groundTruth": content})
    return tmp_path


def test_pictures_that_nobody_annotated_are_left_out(crackforest):
    assert names(list_cases("crackforest", str(crackforest), 2)) == ["001"]


def test_crack_is_segment_2(crackforest):
    path = crackforest / "groundTruth" / "001.mat"
    expected = [[0, 255, 0], [0, 255, 0]]
    np.testing.assert_array_equal(read_crack_mask(path), expected)
    np.testing.assert_array_equal(read_label_map(path)[0], expected)


def test_mask_lies_on_its_picture(crackforest):
    case = list_cases("crackforest", str(crackforest), 2)[0]
    load = Compose([LoadImaged(["image", "label"], reader=CrackMaskReader(), ensure_channel_first=True)])
    found = load(case)
    # as MONAI's PILReader: first axis to the right
    np.testing.assert_array_equal(found["label"], [[[0, 0], [255, 255], [0, 0]]])
    assert found["image"].shape == (3, 3, 2)


def test_prediction_stored_as_a_picture_is_scored_against_a_mask(crackforest, tmp_path):
    save_picture(tmp_path / "001.png", np.array([[0, 255, 0], [0, 0, 255]], np.uint8))
    predicted, reference = read_pair(tmp_path / "001.png", crackforest / "groundTruth" / "001.mat", [0, 255], "nearest")
    np.testing.assert_array_equal(reference, [[0, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(predicted, [[0, 1, 0], [0, 0, 1]])


def test_other_matlab_files_are_refused(tmp_path):
    savemat(tmp_path / "1.mat", {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="must hold groundTruth.Segmentation, as CrackForest's files do"):
        read_crack_mask(tmp_path / "1.mat")


# --- masks that are not quite 0 and 255 -------------------------------------------------------------------------------


def test_masks_are_cut_at_127():
    stray = np.array([0, 8, 127, 128, 254, 255])
    np.testing.assert_array_equal(to_class_indices(stray, [0, 255], "nearest"), [0, 0, 0, 1, 1, 1])


def test_nearest_value_wins_whatever_the_order_of_classes():
    np.testing.assert_array_equal(to_class_indices(np.array([9, 14, 26, 100]), [10, 30, 20], "nearest"), [0, 0, 1, 1])


def test_stray_values_of_a_loaded_label_are_cut():
    label = np.array([[[0.0, 8.0, 200.0]]])
    np.testing.assert_array_equal(
        MapLabelValuesd("label", [0, 255], "nearest")({"label": label})["label"], [[[0, 0, 1]]]
    )


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout, folder, count, case_folders",
    [
        ("drive", "drive", 20, None),
        ("drive", "drive/test", 20, None),
        ("crackforest", "crackforest", 118, None),
        ("folder", "massroads", 8, ["images", "masks"]),
        ("folder", "octa500/train", 140, None),
        ("folder", "topomortar/train", 50, ["images", "noisy"]),
    ],
)
def test_real_folders_are_read(layout, folder, count, case_folders):
    if not SHARED.is_dir():
        pytest.skip("needs the development data")
    cases = list_cases(layout, str(SHARED / folder), 2, case_folders=case_folders or ["images", "labels"])
    assert len(cases) == count
    mask = to_class_indices(read_label_map(cases[0]["label"])[0], [0, 255], "nearest")
    assert 0.001 < mask.mean() < 0.4
