"""Label maps come off the disk as they were stored, in one axis order whatever the format."""

from __future__ import annotations

import itk
import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_skelrec.label_maps import read_image, read_label_map, to_class_indices, voxel_size

VOLUME = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.uint8)
PICTURE = np.array([[0, 255, 255], [0, 0, 255]], dtype=np.uint8)
SPACING = (0.4, 0.5, 1.25)


def write_nifti(path, array, affine=None):
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*SPACING, 1]) if affine is None else affine), path)


def write_itk(path, array):
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    image.SetSpacing(SPACING)
    itk.imwrite(image, str(path))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".npy", ".NII.GZ"])
def test_every_volume_format_gives_the_same_axes_and_spacing(tmp_path, ending):
    path = tmp_path / f"case{ending}"
    if ending == ".npy":
        np.save(path, VOLUME)
    else:
        (write_nifti if "nii" in ending.lower() else write_itk)(path, VOLUME)
    array, spacing = read_label_map(path)
    np.testing.assert_array_equal(array, VOLUME)
    assert spacing is None if ending == ".npy" else spacing == pytest.approx(SPACING)


@pytest.mark.parametrize("axes", [(-1, -1, 1), (1, 1, -1)], ids=["RPI to LPS", "S to I"])
def test_orientation_in_the_header_turns_nothing(tmp_path, axes):
    write_nifti(tmp_path / "case.nii", VOLUME, np.diag([*np.multiply(axes, SPACING), 1]))
    array, spacing = read_label_map(tmp_path / "case.nii")
    np.testing.assert_array_equal(array, VOLUME)
    assert spacing == pytest.approx(SPACING)


@pytest.mark.parametrize("ending", [".png", ".tif", ".tiff", ".gif", ".bmp"])
def test_pictures_are_rows_and_columns(tmp_path, ending):
    Image.fromarray(PICTURE).save(tmp_path / f"case{ending}")
    array, spacing = read_label_map(tmp_path / f"case{ending}")
    np.testing.assert_array_equal(array, PICTURE)
    assert spacing is None


@pytest.mark.parametrize("mode", ["1", "P", "RGB"])
def test_palette_binary_and_colour_masks_are_read_as_grey(tmp_path, mode):
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / "case.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "case.png")[0], PICTURE)


def test_16_bit_picture_keeps_large_values(tmp_path):
    Image.fromarray(PICTURE.astype(np.uint16) * 100).save(tmp_path / "case.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "case.png")[0], PICTURE.astype(int) * 100)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, bool])
def test_whole_numbers_of_any_dtype_are_labels(tmp_path, dtype):
    np.save(tmp_path / "case.npy", VOLUME.astype(dtype))
    array, _ = read_label_map(tmp_path / "case.npy")
    assert np.issubdtype(array.dtype, np.integer)
    np.testing.assert_array_equal(array, VOLUME.astype(dtype).astype(int))


def test_trailing_axes_of_length_1_are_dropped(tmp_path):
    write_nifti(tmp_path / "case.nii", VOLUME[..., None])
    array, spacing = read_label_map(tmp_path / "case.nii")
    assert array.shape == VOLUME.shape and len(spacing) == 3


def test_affine_is_the_same_whoever_reads_the_file(tmp_path):
    """One NIfTI, read by nibabel and, copied to MHA, by ITK."""
    turned = np.array([[0, -0.5, 0, 7], [0.4, 0, 0, -3], [0, 0, 1.25, 2], [0, 0, 0, 1]])
    write_nifti(tmp_path / "case.nii", VOLUME, turned)
    itk.imwrite(itk.imread(str(tmp_path / "case.nii")), str(tmp_path / "case.mha"))
    for name in ("case.nii", "case.mha"):
        array, affine = read_image(tmp_path / name)
        np.testing.assert_array_equal(array, VOLUME)
        np.testing.assert_allclose(affine, turned, atol=1e-6)
        assert voxel_size(affine) == pytest.approx((0.4, 0.5, 1.25))


def test_images_keep_their_fractions(tmp_path):
    np.save(tmp_path / "case.npy", VOLUME / 7)
    np.testing.assert_array_equal(read_image(tmp_path / "case.npy")[0], VOLUME / 7)


@pytest.mark.parametrize(
    "content, message",
    [
        (VOLUME / 7, "case.npy must hold whole numbers to be a label map, got float64 with fractions or NaN"),
        (np.full((2, 2), np.nan), "whole numbers to be a label map, got float64"),
        (np.full((2, 2), np.inf), "whole numbers to be a label map, got float64"),
        (np.zeros((2, 2), complex), "whole numbers to be a label map, got complex128"),
        (np.zeros((2, 2, 2, 2), int), r"case.npy must be 2D or 3D, got shape \(2, 2, 2, 2\)"),
        (np.zeros(3, int), r"case.npy must be 2D or 3D, got shape \(3,\)"),
    ],
)
def test_array_that_is_no_label_map_is_named(tmp_path, content, message):
    np.save(tmp_path / "case.npy", content)
    with pytest.raises(ValueError, match=message):
        read_label_map(tmp_path / "case.npy")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".npy", ".png", ".txt"])
def test_damaged_file_is_named(tmp_path, ending):
    (tmp_path / f"case{ending}").write_bytes(b"not what the ending says")
    with pytest.raises(ValueError, match=f"case{ending} cannot be read: "):
        read_label_map(tmp_path / f"case{ending}")


def test_truncated_file_is_named(tmp_path):
    path = tmp_path / "case.nii.gz"
    write_nifti(path, np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="case.nii.gz cannot be read: "):
        read_label_map(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="case.nii does not exist"):
        read_label_map(tmp_path / "case.nii")


@pytest.mark.parametrize("order", ["C", "F"])
def test_values_become_indices(order):
    """TopCoW's values jump from 12 to 15."""
    label = np.array([[0, 15], [12, 0], [1, 15]], order=order)
    before = label.copy()
    np.testing.assert_array_equal(to_class_indices(label, [*range(13), 15]), [[0, 13], [12, 0], [1, 13]])
    np.testing.assert_array_equal(label, before)


def test_values_do_not_collide_with_indices():
    """3 and 4 become 1 and 2; the 1 and 2 that were there do not stay."""
    indices = to_class_indices(np.array([0, 1, 2, 3, 4]), [0, 3, 4], other_values="background")
    np.testing.assert_array_equal(indices, [0, 0, 0, 1, 2])


def test_background_may_have_any_value():
    np.testing.assert_array_equal(to_class_indices(np.array([255, 7, 255, 0]), [255, 0, 7]), [0, 2, 0, 1])


def test_more_than_256_classes_fit():
    label = np.arange(300)
    np.testing.assert_array_equal(to_class_indices(label, range(300)), label)


def test_unknown_values_are_named():
    with pytest.raises(ValueError, match="values that are not in label_values: 13, 14; list them, or set other_values"):
        to_class_indices(np.array([0, 13, 14, 13, 15]), [0, 15])
    with pytest.raises(ValueError, match=r"values that are not in label_values: 1, 2, .*, 10 \.\.\.; list"):
        to_class_indices(np.arange(20), [0])
    with pytest.raises(ValueError, match="other_values must be 'error', .* or 'nearest', got 'ignore'"):
        to_class_indices(np.arange(2), [0, 1], other_values="ignore")


def test_values_not_listed_can_be_the_only_class():
    indices = to_class_indices(np.array([0, 1, 5, 15]), [0, 1], other_values="foreground")
    np.testing.assert_array_equal(indices, [0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"other_values 'foreground' needs two classes, got label_values \[0, 1, 2\]"):
        to_class_indices(np.arange(2), [0, 1, 2], other_values="foreground")
