"""Folders, files, lists and datalists -> scans with names of their own."""

from __future__ import annotations

import json

import pytest
from scan_data import phantom, write_dicom

from monai_skelrec.scans import find_scans

TOPCOW = r"([^/\\]+?)(_0000)?\.nii(\.gz)?$"
TOOTHFAIRY = r"([^/\\]+)[/\\]data\.npy$"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(source, *arguments, **options):
    return [scan.name for scan in find_scans(source, *arguments, **options)]


def test_folder_holds_scans_of_every_format(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "b.mha", "deep/c_0000.nrrd", "d.npy", "notes.txt", ".e.nii", ".hidden/f.nii")
    assert names(tmp_path, TOPCOW) == ["a", "b", "c", "d"]
    assert names(tmp_path) == ["a_0000", "b", "c_0000", "d"]


def test_name_is_what_the_pattern_calls_it(tmp_path):
    # the annotation beside a scan of the same format is no scan; another format is one
    touch(tmp_path, "P1/data.npy", "P1/gt_alpha.npy", "P2/data.npy", "P3/other.mha")
    assert names(tmp_path, TOOTHFAIRY) == ["P1", "P2", "other"]


def test_label_maps_of_an_earlier_run_are_no_scans(tmp_path):
    touch(tmp_path, "a.nii", "out/a.nii")
    assert names(tmp_path, exclude=tmp_path / "out") == ["a"]


def test_names_that_would_be_the_same_are_told_apart(tmp_path):
    touch(tmp_path, "sub1/ct/scan.nii", "sub2/ct/scan.nii", "x.nii.gz", "X.mha", "one.nii")
    assert names(tmp_path) == ["X_mha", "one", "sub1_ct_scan", "sub2_ct_scan", "x_nii_gz"]


@pytest.mark.parametrize("content", [["a.nii", "deep/b.nii"], [{"image": "a.nii"}, {"image": ["deep/b.nii"]}]])
@pytest.mark.parametrize("section", [None, "testing", "validation"])
def test_datalist_is_relative_to_its_folder(content, section, tmp_path):
    touch(tmp_path, "a.nii", "deep/b.nii")
    (tmp_path / "list.json").write_text(json.dumps(content if section is None else {section: content, "x": 1}))
    assert names(tmp_path / "list.json") == ["a", "b"]


def test_list_of_paths_files_and_dictionaries(tmp_path):
    touch(tmp_path, "a.nii", "in/b.nii")
    assert names([str(tmp_path / "a.nii"), {"image": str(tmp_path / "a.nii")}, tmp_path / "in"]) == ["a", "b"]


def test_a_listed_file_that_is_not_there_is_a_scan_with_a_problem(tmp_path):
    (scan,) = find_scans([str(tmp_path / "gone.nii")])
    assert scan.name == "gone" and scan.problem == "there is no such file"
    (scan,) = find_scans(str(touch(tmp_path, "a.txt") / "a.txt"))
    assert "format is not known" in str(scan.problem)


def test_nothing_to_do_is_an_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="holds no scan: expected a DICOM series or a name that ends in .nii.gz"
    ):
        find_scans(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [("{", "cannot be read"), ('{"a": []}', "needs one of the lists testing"), ("3", "must be a list")],
)
def test_datalist_that_is_none(content, message, tmp_path):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        find_scans(tmp_path / "list.json")


@pytest.mark.parametrize("ending", [".dcm", ".IMA", "", ".123"])
def test_series_of_dicom_is_one_scan_named_after_its_folder(ending, tmp_path):
    write_dicom(tmp_path / "patient", phantom(), ending=ending)
    (scan,) = find_scans(tmp_path)
    assert scan.name == "patient" and scan.path == str(tmp_path / "patient") and scan.problem is None


def test_several_series_are_listed_and_chosen(tmp_path):
    for uid in ("1.2.826.1", "1.2.826.7"):
        write_dicom(tmp_path / "patient", phantom(), uid=uid)
    (scan,) = find_scans(tmp_path)
    assert "it holds 2 DICOM series: 1.2.826.1" in str(scan.problem) and "(9 files)" in str(scan.problem)
    assert names(tmp_path, series="all") == ["patient_series1", "patient_series2"]
    (chosen,) = find_scans(tmp_path, series="1.2.826.7")
    assert str(chosen.series).startswith("1.2.826.7") and chosen.name == "patient"
    (none,) = find_scans(tmp_path, series="1.3")
    assert "none of its DICOM series begins with '1.3'" in str(none.problem)
