"""Scans as files have them, and what is said about those that no network can segment."""

from __future__ import annotations

import re

import nibabel
import numpy as np
import pytest
from monai.transforms import Compose, NormalizeIntensityd, ScaleIntensityRanged
from scan_data import SPACING, affine_of, oblique, phantom, write_dicom, write_itk, write_nifti, write_picture

from monai_skelrec import circle_of_willis, render
from monai_skelrec.reading import UnusableScan, intensity_window, read_scan
from monai_skelrec.scans import Scan, find_scans


def read(path, **options):
    return read_scan(find_scans(path)[0], **options)


def big_endian(path, scan):
    image = nibabel.Nifti1Image(scan, affine_of(), nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, path)
    return path


WRITERS = {
    "nifti": lambda folder, scan: write_nifti(folder / "s.nii", scan),
    "gzip": lambda folder, scan: write_nifti(folder / "s.nii.gz", scan),
    "big-endian": lambda folder, scan: big_endian(folder / "s.nii", scan),
    "one volume of 4D": lambda folder, scan: write_nifti(folder / "s.nii", scan[..., None]),
    "one volume of 5D": lambda folder, scan: write_nifti(folder / "s.nii", scan[..., None, None]),
    "mha": lambda folder, scan: write_itk(folder / "s.mha", scan),
    "mhd": lambda folder, scan: write_itk(folder / "s.mhd", scan),
    "nrrd": lambda folder, scan: write_itk(folder / "s.nrrd", scan),
    "dicom": lambda folder, scan: write_dicom(folder / "s", scan),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_voxels_and_where_they_are(kind, tmp_path):
    loaded = read(WRITERS[kind](tmp_path, phantom()))
    np.testing.assert_array_equal(loaded.image[0].numpy(), phantom())
    # ITK counts towards left and posterior
    lps = kind in ("mha", "mhd", "nrrd", "dicom")
    straight = np.diag([-1, -1, 1, 1]) @ affine_of() if lps else affine_of()
    np.testing.assert_allclose(loaded.affine, straight, atol=1e-6)
    assert loaded.warnings == []


def test_numpy_gets_the_voxel_size_of_the_task_or_says_that_it_has_none(tmp_path):
    np.save(tmp_path / "s.npy", phantom()[None])  # channel first
    loaded = read(tmp_path / "s.npy", voxel_size=SPACING)
    assert loaded.image.shape == (1, *phantom().shape) and not loaded.warnings
    np.testing.assert_allclose(loaded.affine, np.diag([*SPACING, 1]))
    assert "states no voxel size" in read(tmp_path / "s.npy").warnings[0]


def test_oblique_affine_is_kept(tmp_path):
    affine = affine_of((-0.5, 0.75, 1.25), rotation=oblique())
    np.testing.assert_allclose(read(write_nifti(tmp_path / "s.nii", phantom(), affine)).affine, affine, atol=1e-6)


def spoil(value):
    scan = phantom().astype(np.float32)
    scan[1, 2, 3] = value
    return scan


@pytest.mark.parametrize(
    "scan, message",
    [
        (spoil(np.nan), "1 values that are NaN or infinite"),
        (spoil(np.inf), "1 values that are NaN or infinite"),
        (np.full((5, 6, 7), 3, np.int16), "is constant: every voxel is 3"),
        (phantom()[:, :, 0], r"must have 3 axes \(and channels\), got shape \(14, 11\)"),
        (np.stack([phantom()] * 4, -1), r"must have 1 channel\(s\), got shape \(4, 14, 11, 9\)"),
    ],
    ids=["NaN", "infinite", "constant", "2D", "four volumes"],
)
def test_what_no_network_can_segment_is_refused(scan, message, tmp_path):
    with pytest.raises(UnusableScan, match=message):
        read(write_nifti(tmp_path / "s.nii", scan))


def test_empty_volume_truncated_file_and_text_are_refused(tmp_path):
    np.save(tmp_path / "empty.npy", np.zeros((0, 4, 4)))
    with pytest.raises(UnusableScan, match="has no voxels"):
        read(tmp_path / "empty.npy")
    whole = write_nifti(tmp_path / "whole.nii.gz", phantom()).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mha").write_text("not an image")
    for name in ("cut.nii.gz", "text.mha"):
        with pytest.raises(UnusableScan, match=f"{name} cannot be read"):
            read(tmp_path / name)


def test_voxels_without_size_are_refused(tmp_path):
    np.save(tmp_path / "flat.npy", phantom())
    with pytest.raises(UnusableScan, match=r"impossible voxels, with edges of \[0.5, 0.0, 1.0\] mm"):
        read(tmp_path / "flat.npy", voxel_size=(0.5, 0, 1))


def test_pictures_of_several_pages_or_16_bits_are_refused(tmp_path):
    from PIL import Image

    grey = (phantom()[:, :, 4] % 256).astype(np.uint8)
    pages = [Image.fromarray(grey)] * 2
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UnusableScan, match="holds 2 pictures"):
        read(tmp_path / "pages.tif", spatial_dims=2)
    write_picture(tmp_path / "deep.png", grey.astype(np.uint16) * 200)
    with pytest.raises(UnusableScan, match="more than 8 bits"):
        read(tmp_path / "deep.png", spatial_dims=2)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_pictures_are_read_width_first(ending, tmp_path):
    grey = phantom()[:, :, 4].astype(np.uint8)
    loaded = read(write_picture(tmp_path / f"s.{ending}", grey), spatial_dims=2)
    np.testing.assert_array_equal(loaded.image[0].numpy().T, grey)
    np.testing.assert_array_equal(loaded.affine, np.eye(3))


def test_missing_slices_are_told(tmp_path):
    loaded = read(write_dicom(tmp_path / "s", phantom(), missing=(4,)))
    assert "8 slices are 1.25 to 2.5 mm apart" in loaded.warnings[0]


def test_another_modality_or_unit_is_suspected(tmp_path):
    window = (-1000.0, 3000.0)
    rng = np.random.default_rng(0)
    usual = write_nifti(tmp_path / "usual.nii", rng.normal(300, 500, (9, 9, 9)))
    assert read(usual, window=window, spacing=(0.4, 0.4, 0.4)).warnings == []
    rescaled = write_nifti(tmp_path / "rescaled.nii", rng.random((9, 9, 9)))
    assert "are not those the task expects (-1000 to 3000)" in read(rescaled, window=window).warnings[0]
    bright = write_nifti(tmp_path / "bright.nii", rng.normal(30000, 99, (9, 9, 9)))
    assert "another modality, or rescaled?" in read(bright, window=window).warnings[0]
    assert "is the unit another?" in read(usual, spacing=(0.0004, 0.0004, 0.0004)).warnings[0]


def processed(kind):
    """What others make of the CTA or MRA below."""
    rng = np.random.default_rng(1)
    scan = np.where(np.indices((20, 20, 20))[0] < 8, 0, rng.normal(300, 90, (20, 20, 20)).round())
    fraction = (scan - scan.min()) / np.ptp(scan)
    inside = scan[scan > 0]
    return {
        "unit": fraction,
        "symmetric": 2 * fraction - 1,
        "8 bits": (255 * fraction).round().astype(np.uint8),
        "z-scored": (scan - scan.mean()) / scan.std(),
        "z-scored inside": np.where(scan > 0, (scan - inside.mean()) / inside.std(), 0),
        "label map": (5 * fraction).round().astype(np.int16),
        "mask": (scan > 300).astype(np.float32),
    }[kind]


@pytest.mark.parametrize(
    "kind, message",
    [
        ("unit", r"its values \(0 to 1\) are no scanner's; normalised or rescaled before"),
        ("symmetric", r"its values \(-1 to 1\) are no scanner's"),
        ("8 bits", r"its values \(0 to 255, whole\) are those of 8 bits; windowed"),
        ("z-scored", "are no scanner's"),
        ("z-scored inside", "are no scanner's"),
        ("label map", r"its values \(0 to 5, 6 different ones\) are few for a scan; a label map or a mask"),
        ("mask", "2 different ones"),
    ],
)
def test_values_that_no_scanner_stores_are_suspected_where_a_task_knows_no_range(kind, message, tmp_path):
    path = write_nifti(tmp_path / "s.nii", processed(kind))
    (warning,) = read(path, raw=True).warnings
    assert re.search(message, warning)
    assert read(path).warnings == []


def real_range(kind):
    rng = np.random.default_rng(2)
    shape = (20, 20, 20)
    head = np.indices(shape)[0] >= 8
    return {
        "CTA": np.where(head, rng.normal(60, 250, shape), -1024).clip(-1024, 3071).astype(np.int16),
        "CTA with padding": np.where(head, rng.normal(60, 250, shape), -3024).astype(np.int16),
        "CTA in float": np.where(head, rng.normal(60, 250, shape), -1000.25),
        "MRA": rng.rayleigh(np.where(head, 120, 4), shape).astype(np.int16),
        "MRA with a slope": rng.rayleigh(np.where(head, 120, 4), shape).astype(np.int16) * 0.37,
        "MRA without skull": np.where(head, rng.rayleigh(90, shape), 0).astype(np.uint16),
        "dark MRA": rng.rayleigh(np.where(head, 40, 2), shape).clip(0, 240).astype(np.uint16),
        "floating MRA of small values": rng.rayleigh(np.where(head, 0.8, 0.02), shape),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "CTA",
        "CTA with padding",
        "CTA in float",
        "MRA",
        "MRA with a slope",
        "MRA without skull",
        "dark MRA",
        "floating MRA of small values",
    ],
)
def test_ranges_of_scanners_are_not_suspected(kind, tmp_path):
    assert read(write_nifti(tmp_path / "s.nii", real_range(kind)), raw=True).warnings == []


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_drawn_scans_are_not_suspected(modality, tmp_path):
    scan = render(circle_of_willis(1, (36, 40, 32), 1.5), 1, modality)
    assert read(write_nifti(tmp_path / "s.nii", scan), raw=True).warnings == []


def test_window_is_that_of_the_clipping_transform():
    scale = ScaleIntensityRanged("image", -1000, 3000, 0, 1, clip=True)
    assert intensity_window(Compose([scale, NormalizeIntensityd("image")])) == (-1000, 3000)
    assert intensity_window(NormalizeIntensityd("image")) is None
    assert intensity_window(ScaleIntensityRanged("image", -1000, 3000, 0, 1)) is None


def test_a_known_problem_is_the_reason():
    with pytest.raises(UnusableScan, match="x.nii: there is no such file."):
        read_scan(Scan("x", "x.nii", None, "there is no such file"))
