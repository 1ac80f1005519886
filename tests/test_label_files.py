"""Label maps on exactly the scan's grid, by libraries that did not write them."""

from __future__ import annotations

import errno

import itk
import nibabel
import numpy as np
import pytest
from PIL import Image
from scan_data import affine_of, expected, oblique, phantom, write_itk, write_nifti

from monai_skelrec import files
from monai_skelrec.label_files import ending_like, write_label_map
from monai_skelrec.reading import read_scan
from monai_skelrec.scans import find_scans

LABELS = expected(phantom())


def affine_by_itk(path):
    image = itk.imread(str(path))
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("target", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("source", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("rotation", [None, oblique()], ids=["straight", "oblique"])
def test_grid_is_the_scans_whatever_the_two_formats(source, target, rotation, tmp_path):
    if source == ".nii.gz":
        path = write_nifti(tmp_path / f"scan{source}", phantom(), affine_of((-0.5, 0.75, 1.25), rotation=rotation))
        truth = nibabel.load(path).affine
    else:
        path = write_itk(tmp_path / f"scan{source}", phantom(), direction=rotation)
        truth = affine_by_itk(path)
    affine = read_scan(find_scans(path)[0]).affine
    write_label_map(tmp_path / f"label{target}", LABELS, affine, str(path))
    image = itk.imread(str(tmp_path / f"label{target}"))
    np.testing.assert_array_equal(itk.array_from_image(image).T, LABELS)
    np.testing.assert_allclose(affine_by_itk(tmp_path / f"label{target}"), truth, atol=2e-6)
    assert itk.array_from_image(image).dtype == np.uint8
    if target.startswith(".nii"):
        label_map = nibabel.load(tmp_path / f"label{target}")
        np.testing.assert_array_equal(np.asarray(label_map.dataobj), LABELS)
        np.testing.assert_allclose(label_map.affine, truth, atol=2e-6)
    elif source == target:
        scan = itk.imread(str(path))
        assert list(image.GetOrigin()) == list(scan.GetOrigin())
        assert list(image.GetSpacing()) == list(scan.GetSpacing())
        # NRRD stores direction times spacing
        turn, truth = (itk.array_from_matrix(each.GetDirection()) for each in (image, scan))
        np.testing.assert_allclose(turn, truth, rtol=0, atol=1e-15 if source == ".nrrd" else 0)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 4), (0, 0)])
def test_nifti_keeps_both_transforms_and_their_codes(codes, tmp_path):
    image = nibabel.Nifti1Image(phantom(), affine_of())
    image.set_sform(affine_of(origin=(1, 2, 3)), code=codes[0])
    image.set_qform(affine_of(rotation=oblique()), code=codes[1])
    nibabel.save(image, tmp_path / "scan.nii")
    scan = nibabel.load(tmp_path / "scan.nii")
    write_label_map(tmp_path / "label.nii", LABELS, scan.affine, str(tmp_path / "scan.nii"))
    label_map = nibabel.load(tmp_path / "label.nii")
    for name in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "pixdim"):
        np.testing.assert_array_equal(label_map.header[name], scan.header[name], err_msg=name)
    np.testing.assert_array_equal(label_map.affine, scan.affine)


def test_scan_of_one_volume_gets_a_label_map_of_three_axes(tmp_path):
    path = write_nifti(tmp_path / "scan.nii", phantom()[..., None])
    write_label_map(tmp_path / "label.nii", LABELS, affine_of(), str(path))
    assert nibabel.load(tmp_path / "label.nii").shape == phantom().shape


def test_pictures_have_the_scans_width_and_height(tmp_path):
    flat = LABELS[:, :, 4]
    for ending in (".png", ".tif", ".bmp"):
        write_label_map(tmp_path / f"label{ending}", flat, np.eye(3))
        picture = Image.open(tmp_path / f"label{ending}")
        assert picture.size == flat.shape and (np.asarray(picture).T == flat).all()


def test_label_values_above_255_stay(tmp_path):
    many = LABELS.astype(np.uint16) * 100
    for ending in (".nii.gz", ".mha"):
        write_label_map(tmp_path / f"label{ending}", many, affine_of())
        assert itk.array_from_image(itk.imread(str(tmp_path / f"label{ending}"))).max() == 700
    with pytest.raises(ValueError, match="cannot hold label values above 255"):
        write_label_map(tmp_path / "label.png", many[:, :, 4], np.eye(3))


def test_formats_that_lose_or_do_not_fit_are_refused(tmp_path):
    for name, labels in (("a.jpg", LABELS[:, :, 0]), ("a.png", LABELS), ("a.xyz", LABELS)):
        with pytest.raises(ValueError, match="cannot be written as"):
            write_label_map(tmp_path / name, labels, np.eye(labels.ndim + 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scan, ending", [("a.mhd", ".mha"), ("a.nii", ".nii"), ("a.jpg", ".png"), ("dicom", ".png")])
def test_format_of_the_scan_where_it_holds_label_maps(scan, ending):
    assert ending_like(scan, ".png") == ending


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".npy"])
def test_full_disk_leaves_the_old_label_map_and_nothing_else(ending, tmp_path, monkeypatch):
    path = tmp_path / f"label{ending}"
    write_label_map(path, LABELS, affine_of())
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(OSError, match="No space left"):
        write_label_map(path, LABELS[::-1], affine_of())
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == [path.name]
