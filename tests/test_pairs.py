"""Label maps of two folders are matched by name, read as stored, and refused where they lie on different grids."""

from __future__ import annotations

import itk
import nibabel
import numpy as np
import pytest
from bundle_data import save_mha, save_npy, save_picture
from PIL import Image

from monai_skelrec.pairs import match_label_maps, read_pair, read_raw_pair

LABEL = np.zeros((6, 7, 8), np.uint8)
LABEL[1:5, 3, 4] = 1
AFFINE = np.diag([0.5, 0.6, 2.0, 1])


def save(path, array=LABEL, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def touch(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_names_match_whatever_the_format_and_the_suffix(tmp_path):
    predictions = touch(
        tmp_path / "p", "a.mha", "b_0000.nii.gz", "c.1.nrrd", "d_seg.nii.gz", "notes.txt", ".hidden.nii"
    )
    references = touch(tmp_path / "r", "a.nii.gz", "b.nii.gz", "c.1.nii", "d.nii.gz")
    found = match_label_maps(predictions, references, ["_0000", "_seg"])
    assert [case["name"] for case in found.cases] == ["a", "b", "c.1", "d"] and found.missing == []
    assert found.cases[1] == {
        "name": "b",
        "label": str(references / "b.nii.gz"),
        "prediction": str(predictions / "b_0000.nii.gz"),
    }
    # without the suffix, "b_0000" and "d_seg" are other names
    assert [case["name"] for case in match_label_maps(predictions, references, []).cases] == ["a", "c.1"]


def test_what_is_missing_on_either_side_or_doubled_is_listed(tmp_path):
    predictions = touch(tmp_path / "p", "a.nii.gz", "b.nii.gz", "d.nii.gz", "d.mha")
    references = touch(tmp_path / "r", "a.nii.gz", "c.nii.gz", "d.nii.gz")
    found = match_label_maps(predictions, references)
    assert [case["name"] for case in found.cases] == ["a"]
    errors = {each["case"]: each["error"] for each in found.missing}
    assert errors["b"] == f"the reference is missing: {predictions / 'b.nii.gz'} has no counterpart."
    assert errors["c"] == f"the prediction is missing: {references / 'c.nii.gz'} has no counterpart."
    assert errors["d"] == "2 files have this name (d.mha, d.nii.gz): keep one."


def test_folders_that_do_not_match_are_named(tmp_path):
    predictions, references = touch(tmp_path / "p", "x.nii.gz"), touch(tmp_path / "r", "a.nii.gz")
    with pytest.raises(
        ValueError, match=r"no prediction in .*p' \(x.nii.gz \.\.\.\) has the name of a reference in .*r'"
    ):
        match_label_maps(predictions, references)
    with pytest.raises(
        ValueError, match="references_dir .*empty' holds no label map: expected names that end in one of"
    ):
        match_label_maps(predictions, touch(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="predictions_dir .*nowhere' is not a folder; set --predictions_dir"):
        match_label_maps(tmp_path / "nowhere", references)


def test_nifti_and_mha_of_one_scan_agree(tmp_path):
    save_mha(tmp_path / "a.mha", LABEL)
    # ITK counts towards left and posterior
    affine = np.array([[-0.6, 0, 0, -5], [0, -0.6, 0, 3], [0, 0, 0.6, 2], [0, 0, 0, 1]])
    pair = read_raw_pair(save(tmp_path / "a.nii.gz", affine=affine), tmp_path / "a.mha")
    np.testing.assert_array_equal(pair.pred, pair.reference)
    assert pair.spacing == pytest.approx((0.6, 0.6, 0.6))


@pytest.mark.parametrize(
    "place, value, name", [((2, 2), 1.5, "spacing"), ((0, 3), 3, "origin"), ((1, 1), -0.6, "direction")]
)
def test_other_grid_is_named_and_never_resampled(tmp_path, place, value, name):
    other = AFFINE.copy()
    other[place] = value
    files = save(tmp_path / "p.nii.gz", affine=other), save(tmp_path / "r.nii.gz")
    with pytest.raises(
        ValueError, match=rf"must lie on one grid, got {name} \(.*\) and \(.*p.nii.gz and .*r.nii.gz; re"
    ):
        read_raw_pair(*files)
    assert read_raw_pair(*files, check_grid=False).spacing == pytest.approx((0.5, 0.6, 2.0))


def test_other_shape_is_refused_even_unchecked(tmp_path):
    files = save(tmp_path / "p.nii.gz", LABEL[1:]), save(tmp_path / "r.nii.gz")
    with pytest.raises(ValueError, match=r"must have one shape, got \(5, 7, 8\) in .* and \(6, 7, 8\) in"):
        read_raw_pair(*files, check_grid=False)


def test_spacing_is_that_of_the_side_that_has_one(tmp_path):
    save_npy(tmp_path / "a.npy", LABEL)
    assert read_raw_pair(save(tmp_path / "a.nii"), tmp_path / "a.npy").spacing == pytest.approx((0.5, 0.6, 2.0))
    assert read_raw_pair(tmp_path / "a.npy", tmp_path / "a.npy").spacing is None


def test_integers_stored_as_floats_are_labels_and_fractions_are_not(tmp_path):
    reference = save(tmp_path / "r.nii.gz")
    pred, _ = read_pair(save(tmp_path / "p.nii.gz", LABEL.astype(np.float32)), reference, [0, 1], "error")
    np.testing.assert_array_equal(pred, LABEL)
    with pytest.raises(ValueError, match="prediction cannot be scored: .*q.nii.gz must hold whole numbers"):
        read_pair(save(tmp_path / "q.nii.gz", LABEL * np.float32(0.5)), reference, [0, 1], "error")


def test_picture_and_2d_volume_of_one_image_are_refused(tmp_path):
    """A square would be scored transposed, without a word."""
    square = np.zeros((8, 8), np.uint8)
    square[2, 1:7] = 1
    save_picture(tmp_path / "a.png", square)
    Image.fromarray(square).save(tmp_path / "a.tif")
    itk.imwrite(itk.image_from_array(square), str(tmp_path / "a.mha"))
    with pytest.raises(ValueError, match="must both be pictures or both be volumes: pictures are stored by rows"):
        read_raw_pair(tmp_path / "a.mha", tmp_path / "a.png")
    pair = read_raw_pair(tmp_path / "a.tif", tmp_path / "a.png")
    np.testing.assert_array_equal(pair.pred, pair.reference)
