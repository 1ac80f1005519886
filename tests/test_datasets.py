"""Folders on disk -> cases -> folds, on files small enough to write in each test."""

from __future__ import annotations

import re

import itk
import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_skelrec.datasets import list_cases, split_cases

SHAPE = (4, 5, 6)


def write(path, shape=SHAPE, affine=None):
    """An empty volume or picture in the format that the path names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, dtype=np.uint8)
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    elif path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix in (".mha", ".nrrd"):
        itk.imwrite(itk.image_from_array(array.T.copy()), str(path))
    else:
        Image.fromarray(array.T).save(path)


def topcow(root, *patients, modalities=("ct", "mr")):
    for patient in patients:
        for modality in modalities:
            write(root / "imagesTr" / f"topcow_{modality}_{patient:03d}_0000.nii.gz")
            write(root / "cow_seg_labelsTr" / f"topcow_{modality}_{patient:03d}.nii.gz")
    return root


def names(cases):
    return [case["name"] for case in cases]


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_topcow_finds_both_modalities_or_one(tmp_path):
    topcow(tmp_path, 1, 2)
    assert names(list_cases("topcow", str(tmp_path))) == [
        "topcow_ct_001",
        "topcow_ct_002",
        "topcow_mr_001",
        "topcow_mr_002",
    ]
    assert names(list_cases("topcow", str(tmp_path), modality="mr")) == ["topcow_mr_001", "topcow_mr_002"]
    case = list_cases("topcow", str(tmp_path), modality="ct")[0]
    assert case["image"].endswith("imagesTr/topcow_ct_001_0000.nii.gz")
    assert case["label"].endswith("cow_seg_labelsTr/topcow_ct_001.nii.gz")


def test_toothfairy_takes_the_name_of_the_patients_folder(tmp_path):
    for patient in ("P1", "P2"):
        write(tmp_path / patient / "data.npy")
        write(tmp_path / patient / "gt_alpha.npy")
    (tmp_path / "notes").mkdir()
    assert names(list_cases("toothfairy", str(tmp_path))) == ["P1", "P2"]


def test_toothfairy2_pairs_mha_files(tmp_path):
    write(tmp_path / "imagesTr" / "ToothFairy2F_001_0000.mha")
    write(tmp_path / "labelsTr" / "ToothFairy2F_001.mha")
    assert names(list_cases("toothfairy2", str(tmp_path))) == ["ToothFairy2F_001"]


@pytest.mark.parametrize("image, label", [("a.nii.gz", "a.mha"), ("a.nrrd", "a.nii"), ("a.b.npy", "a.b.nii.gz")])
def test_folder_pairs_volumes_by_stem_across_formats(tmp_path, image, label):
    # one grid in both formats: the files of ITK count towards left and posterior
    write(tmp_path / "images" / image, affine=np.diag([-1, -1, 1, 1]))
    write(tmp_path / "labels" / label, affine=np.diag([-1, -1, 1, 1]))
    (tmp_path / "images" / "readme.txt").write_text("not a scan")
    assert names(list_cases("folder", str(tmp_path))) == [image.rsplit(".", 2 if "gz" in image else 1)[0]]


@pytest.mark.parametrize("image, label", [("a.tif", "a.png"), ("a.TIFF", "a.gif"), ("a.jpg", "a.png")])
def test_folder_pairs_pictures(tmp_path, image, label):
    write(tmp_path / "images" / image, (7, 5))
    write(tmp_path / "labels" / label, (7, 5))
    assert names(list_cases("folder", str(tmp_path), spatial_dims=2)) == ["a"]


# --- what a folder can lack ------------------------------------------------------------------------------------------


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder; set --dataset_dir"):
        list_cases("folder", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="images' does not exist; check --dataset_dir and --layout"):
        list_cases("folder", str(tmp_path))


def test_image_without_label_and_label_without_image_are_named(tmp_path):
    topcow(tmp_path, 1, 2, 3)
    (tmp_path / "cow_seg_labelsTr" / "topcow_ct_001.nii.gz").unlink()
    (tmp_path / "imagesTr" / "topcow_mr_003_0000.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"(?s)2 problem.*topcow_ct_001_0000.nii.gz has no label.*mr_003.*no image"):
        list_cases("topcow", str(tmp_path))


def test_toothfairy_patient_without_label_is_named(tmp_path):
    write(tmp_path / "P1" / "data.npy")
    with pytest.raises(ValueError, match="gt_alpha.npy is missing; expected data.npy and gt_alpha.npy"):
        list_cases("toothfairy", str(tmp_path))


def test_toothfairy_patient_with_sparse_annotation_is_left_out(tmp_path):
    write(tmp_path / "P1" / "data.npy")
    write(tmp_path / "P1" / "gt_alpha.npy")
    write(tmp_path / "P2" / "data.npy")
    write(tmp_path / "P2" / "gt_sparse.npy")
    assert names(list_cases("toothfairy", str(tmp_path))) == ["P1"]


def test_picture_of_16_bits_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "images" / "a.tif")
    write(tmp_path / "labels" / "a.png", (4, 4))
    with pytest.raises(ValueError, match="images/a.tif cannot be read: it has more than 8 bits a channel"):
        list_cases("folder", str(tmp_path), spatial_dims=2)


def test_doubled_case_is_named(tmp_path):
    write(tmp_path / "images" / "a.nii.gz")
    write(tmp_path / "images" / "a.nii")
    write(tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(ValueError, match=r"case 'a' has 2 images \(a.nii, a.nii.gz\): keep one"):
        list_cases("folder", str(tmp_path))


def test_empty_folder_says_what_was_expected(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "cow_seg_labelsTr").mkdir()
    with pytest.raises(ValueError, match="no case of layout 'topcow'.*expected imagesTr/topcow_"):
        list_cases("topcow", str(tmp_path))


def test_damaged_file_is_named(tmp_path):
    write(tmp_path / "images" / "a.nii.gz")
    write(tmp_path / "labels" / "a.nii.gz")
    (tmp_path / "images" / "a.nii.gz").write_bytes(b"this is no volume")
    with pytest.raises(ValueError, match="images/a.nii.gz cannot be read: .+"):
        list_cases("folder", str(tmp_path))


def test_label_of_another_shape_is_named(tmp_path):
    write(tmp_path / "images" / "a.nii.gz")
    write(tmp_path / "labels" / "a.nii.gz", (4, 5, 7))
    with pytest.raises(ValueError, match=r"labels/a.nii.gz has shape \(4, 5, 7\), its image .* has \(4, 5, 6\)"):
        list_cases("folder", str(tmp_path))


def test_label_on_another_grid_is_named(tmp_path):
    write(tmp_path / "images" / "a.nii.gz")
    write(tmp_path / "labels" / "a.nii.gz", affine=np.diag([2, 1, 1, 1]))
    with pytest.raises(ValueError, match="labels/a.nii.gz lies elsewhere than its image"):
        list_cases("folder", str(tmp_path))


def test_rounding_of_an_affine_is_no_other_grid(tmp_path):
    write(tmp_path / "images" / "a.nii.gz")
    write(tmp_path / "labels" / "a.nii.gz", affine=np.diag([1.001, 1, 1, 1]))
    assert names(list_cases("folder", str(tmp_path))) == ["a"]


def test_4d_image_is_named_and_a_singleton_fourth_axis_is_fine(tmp_path):
    write(tmp_path / "images" / "a.nii.gz", (*SHAPE, 1))
    write(tmp_path / "labels" / "a.nii.gz")
    assert names(list_cases("folder", str(tmp_path))) == ["a"]
    write(tmp_path / "images" / "a.nii.gz", (*SHAPE, 3))
    with pytest.raises(ValueError, match=r"shape \(4, 5, 6, 3\): expected 3 dimensions, one scan in a file"):
        list_cases("folder", str(tmp_path))


def test_many_problems_are_counted(tmp_path):
    for number in range(15):
        write(tmp_path / "images" / f"{number}.npy")
    (tmp_path / "labels").mkdir()
    with pytest.raises(ValueError, match=r"(?s)15 problem\(s\).*and 5 more"):
        list_cases("folder", str(tmp_path))


def test_unknown_layout_and_modality_are_refused(tmp_path):
    with pytest.raises(ValueError, match="layout must be one of 'topcow', .*got 'bids'"):
        list_cases("bids", str(tmp_path))
    with pytest.raises(ValueError, match="modality must be 'all', or 'ct' or 'mr' with layout 'topcow', got 'pet'"):
        list_cases("topcow", str(tmp_path), modality="pet")
    with pytest.raises(ValueError, match="got 'ct' with 'folder'"):
        list_cases("folder", str(tmp_path), modality="ct")


# --- folds -----------------------------------------------------------------------------------------------------------


def made_up(*groups):
    return [
        {"name": f"case{number}", "image": "", "label": "", "group": str(group)} for number, group in enumerate(groups)
    ]


def test_folds_hold_out_every_case_once():
    cases = made_up(*range(13))
    held_out = [names(split_cases(cases, fold).held_out) for fold in range(5)]
    assert sorted(sum(held_out, [])) == sorted(names(cases))
    assert sorted(map(len, held_out)) == [2, 2, 3, 3, 3]
    for fold in range(5):
        assert sorted(names(split_cases(cases, fold).training) + held_out[fold]) == sorted(names(cases))


def test_split_is_the_same_everywhere_and_ever():
    # written down once: a release that deals the folds anew makes every earlier score incomparable
    cases = made_up(*range(10))
    assert [names(split_cases(cases, fold).held_out) for fold in range(5)] == EXPECTED_SPLIT


EXPECTED_SPLIT = [["case3", "case9"], ["case1", "case5"], ["case4", "case7"], ["case0", "case6"], ["case2", "case8"]]


def test_seed_changes_the_split():
    cases = made_up(*range(10))
    assert names(split_cases(cases, 0, seed=1).held_out) != names(split_cases(cases, 0, seed=2).held_out)


def test_order_of_the_cases_does_not_change_the_split():
    cases = made_up(*range(10))
    assert sorted(names(split_cases(cases[::-1], 2).held_out)) == sorted(names(split_cases(cases, 2).held_out))


def test_cta_and_mra_of_a_patient_stay_together(tmp_path):
    cases = list_cases("topcow", str(topcow(tmp_path, *range(1, 8))))
    for fold in range(5):
        split = split_cases(cases, fold)
        patients = [{name[-3:] for name in names(side)} for side in split]
        assert not patients[0] & patients[1]
        assert len(split.held_out) == 2 * len(patients[1])


def test_group_table_keeps_cases_together(tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("name,group\ncase0,same\ncase5,same\n")
    cases = made_up(*range(6))
    for fold in range(5):
        held_out = names(split_cases(cases, fold, group_table=str(table)).held_out)
        assert ("case0" in held_out) == ("case5" in held_out)


def test_group_table_with_wrong_columns_or_names_is_refused(tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n")
    with pytest.raises(ValueError, match=r"needs the columns name and group, got \['case', 'group'\]"):
        split_cases(made_up(1, 2), 0, 2, group_table=str(table))
    table.write_text("name,group\nother,1\n")
    with pytest.raises(ValueError, match="names cases that are not there: other"):
        split_cases(made_up(1, 2), 0, 2, group_table=str(table))
    with pytest.raises(FileNotFoundError, match="missing.csv' is not a file"):
        split_cases(made_up(1, 2), 0, 2, group_table=str(tmp_path / "missing.csv"))


def test_fold_all_puts_every_case_on_both_sides():
    cases = made_up(1, 2)
    assert split_cases(cases, "all") == (cases, cases)


@pytest.mark.parametrize("fold", [5, -1, "first", 1.0, True, None])
def test_fold_that_does_not_exist_is_refused(fold):
    with pytest.raises(ValueError, match=re.escape(f"fold must be 0 to 4 (or 'all'), got {fold!r}")):
        split_cases(made_up(*range(9)), fold)


def test_fewer_groups_than_folds_would_leave_a_fold_empty():
    with pytest.raises(ValueError, match="5 folds need at least 5 groups of cases, got 3 .*lower --folds"):
        split_cases(made_up(1, 2, 3), 4)
    with pytest.raises(ValueError, match="1 folds need at least 2 groups"):
        split_cases(made_up(1), 0, folds=1)


def test_a_fraction_keeps_whole_groups_and_less_is_a_part_of_more():
    cases = [{"name": f"{kind}_{n}", "group": str(n)} for n in range(20) for kind in ("ct", "mr")]
    whole = split_cases(cases, fold=1)
    parts = {fraction: split_cases(cases, 1, data_fraction=fraction) for fraction in (0.001, 0.25, 0.5, 1.0)}
    sizes = [len({case["group"] for case in part.training}) for part in parts.values()]
    assert sizes == [1, 4, 8, 16]
    names = [{case["name"] for case in part.training} for part in parts.values()]
    assert names[0] < names[1] < names[2] < names[3]
    for part in parts.values():
        assert part.held_out == whole.held_out
        assert all(sum(case["group"] == other["group"] for other in part.training) == 2 for case in part.training)
    # without a held-out fold the scores are still of every case
    everything = split_cases(cases, "all", data_fraction=0.5)
    assert len(everything.training) == 20 and len(everything.held_out) == 40


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01])
def test_a_fraction_of_nothing_or_of_more_than_everything_is_refused(fraction):
    with pytest.raises(ValueError, match=f"data_fraction must be above 0 and at most 1, got {fraction}"):
        split_cases([], 0, data_fraction=fraction)
