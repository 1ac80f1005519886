"""Scans drawn from label maps: the grid stays, what is no class is seen and not labelled, and every process agrees."""

from __future__ import annotations

import csv

import monai.bundle
import nibabel
import numpy as np
import pytest
from bundle_data import files_of, save_nifti

from monai_skelrec import list_cases, write_renderings

AFFINE = np.array([[-0.5, 0, 0, 20], [0, -0.5, 0, 30], [0, 0, 0.8, -10], [0, 0, 0, 1.0]])


def write_map(path, values=(1, 13), affine=AFFINE):
    """A tube of each value along the last axis, eight voxels apart."""
    label = np.zeros((40, 32, 24), np.uint8)
    for number, value in enumerate(values):
        label[10 + 8 * number : 13 + 8 * number, 14:17, 4:20] = value
    save_nifti(path, label, affine)
    return label


def test_scans_have_the_grid_of_their_map_and_labels_the_classes_only(tmp_path):
    everything = write_map(tmp_path / "maps" / "brain_ct_017.nii.gz")
    write_renderings(str(tmp_path / "maps"), str(tmp_path / "data"))
    cases = list_cases("topcow", str(tmp_path / "data"))
    assert [case["name"] for case in cases] == ["topcow_ct_017", "topcow_mr_017"]
    for case in cases:
        image, label = nibabel.load(case["image"]), nibabel.load(case["label"])
        for stored in (image, label):
            assert stored.shape == everything.shape
            np.testing.assert_allclose(stored.affine, AFFINE, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(label.dataobj), np.where(everything == 13, 0, everything))
        scan = np.asarray(image.dataobj).astype(float)
        # the tube of value 13, no class, is as bright as the artery beside it
        assert scan[19, 15, 6:18].mean() > scan[35, 15, 6:18].mean() + 100
    with open(tmp_path / "data" / "sources.csv", newline="") as file:
        assert next(csv.DictReader(file)) == {"name": "topcow_ct_017", "source": "brain_ct_017.nii.gz"}


def test_margin_keeps_every_voxel_where_it_is_in_space(tmp_path):
    write_map(tmp_path / "maps" / "1.nii.gz")
    write_renderings(str(tmp_path / "maps"), str(tmp_path / "data"), modality="ct", margin_mm=1.0)
    label = nibabel.load(tmp_path / "data" / "cow_seg_labelsTr" / "topcow_ct_001.nii.gz")
    # 3 x 3 x 16 voxels, and 2 (0.5 mm) or 2 (0.8 mm, rounded up) on each side
    assert label.shape == (7, 7, 20)
    first = np.argwhere(np.asarray(label.dataobj) == 1)[0]
    np.testing.assert_allclose(label.affine @ [*first, 1], AFFINE @ [10, 14, 4, 1], atol=1e-5)


def test_two_processes_write_what_one_writes_and_another_seed_something_else(tmp_path):
    for number in (1, 2):
        write_map(tmp_path / "maps" / f"{number}.nii.gz", values=(number, 20))
    for folder, knobs in (("one", {}), ("two", {"num_workers": 2}), ("other", {"seed": 1})):
        write_renderings(str(tmp_path / "maps"), str(tmp_path / folder), modality="mr", **knobs)
    for path in (tmp_path / "one").rglob("*.nii.gz"):
        inside = path.relative_to(tmp_path / "one")
        assert path.read_bytes() == (tmp_path / "two" / inside).read_bytes()
        assert (path.read_bytes() == (tmp_path / "other" / inside).read_bytes()) == ("labels" in str(inside))


def test_maps_without_numbers_of_their_own_are_numbered_by_name(tmp_path):
    for name in ("b_1", "a_1"):
        write_map(tmp_path / "maps" / f"{name}.nii.gz")
    write_renderings(str(tmp_path / "maps"), str(tmp_path / "data"), modality="ct")
    rows = (tmp_path / "data" / "sources.csv").read_text().splitlines()
    assert rows == ["name,source", "topcow_ct_001,a_1.nii.gz", "topcow_ct_002,b_1.nii.gz"]


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no label maps"):
        write_renderings(str(tmp_path / "nothing"), str(tmp_path / "data"))
    write_map(tmp_path / "maps" / "1.nii.gz", values=(13,))
    with pytest.raises(ValueError, match="modality must be 'all', 'ct' or 'mr', got 'cbct'"):
        write_renderings(str(tmp_path / "maps"), str(tmp_path / "data"), modality="cbct")
    with pytest.raises(ValueError, match="margin_mm must be at least 0, got -1"):
        write_renderings(str(tmp_path / "maps"), str(tmp_path / "data"), margin_mm=-1)
    with pytest.raises(ValueError, match="1.nii.gz holds none of the label values"):
        write_renderings(str(tmp_path / "maps"), str(tmp_path / "data"))
    with pytest.raises(FileExistsError, match="holds cases already; take another folder"):
        write_renderings(str(tmp_path / "maps"), str(tmp_path / "data"))


def test_bundle_command_renders(tmp_path):
    write_map(tmp_path / "maps" / "1.nii.gz")
    monai.bundle.run(
        run_id="rendering",
        config_file=files_of("rendering.yaml"),
        label_map_dir=str(tmp_path / "maps"),
        output_dir=str(tmp_path / "data"),
        modality="ct",
        label_values=[0, 13],
    )
    label = np.asarray(nibabel.load(tmp_path / "data" / "cow_seg_labelsTr" / "topcow_ct_001.nii.gz").dataobj)
    assert set(np.unique(label)) == {0, 13}
