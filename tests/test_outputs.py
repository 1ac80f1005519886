"""What comes beside a label map: repairs, files of centrelines, tables and pictures of drawn scans."""

from __future__ import annotations

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from monai_skelrec.outputs import CenterlineFiles, ClassTable, Repair, ScanPicture, measure_classes
from monai_skelrec.scan_pictures import project_scan

NAMES, VALUES = ["background", "vessel", "canal", "nerve"], [0, 1, 7, 15]
AFFINE = np.diag([0.5, 1.0, 2.0, 1.0])


@pytest.fixture
def label():
    label = np.zeros((10, 12, 8), np.uint8)
    label[1:9, 2, 3] = 1
    label[2:5, 8:11, 2:5] = 3
    label[8, 8, 6] = 3
    return label


def test_a_table_counts_and_measures_every_class(label):
    vessel, canal, nerve = measure_classes(label, NAMES, VALUES, AFFINE)
    assert vessel == {
        "class": "vessel",
        "value": 1,
        "voxels": 8,
        "volume_mm3": 8.0,  # voxels of 0.5 x 1 x 2 mm
        "components": 1,
        "centerline_mm": 3.5,  # seven steps of 0.5 mm
        "branches": 1,
        "mean_radius_mm": 0.875,  # both ends have background 0.5 mm away, the six between them 1 mm
    }
    assert canal["voxels"] == canal["components"] == canal["centerline_mm"] == 0 and canal["mean_radius_mm"] is None
    assert (nerve["components"], nerve["voxels"], nerve["value"]) == (2, 28, 15)


@pytest.mark.parametrize(
    "spacing, error",
    [((1.0, 1.0, 1.0), 0.36), ((0.4, 0.4, 0.65), 0.45), ((0.5, 0.5, 1.25), 0.6)],
    ids=["cubic", "TopCoW", "thick slices"],
)
@pytest.mark.parametrize("radius", [1.5, 2.5])
def test_mean_radius_of_a_bent_tube_is_within_the_documented_error(spacing, error, radius):
    """Radius and error in in-plane voxels."""
    edge = spacing[0]
    shape = np.ceil(30 * edge / np.array(spacing)).astype(int)
    places = np.stack(np.indices(shape), -1) * spacing
    turn = np.linspace(0, 2, 300)
    path = edge * np.stack([6 + 16 * np.sin(turn), 5 + 9 * turn, 24 - 8 * turn], 1)
    nearest = cKDTree(path).query(places.reshape(-1, 3))[0].reshape(shape)
    affine = np.diag([*spacing, 1.0])
    (row,) = measure_classes((nearest <= radius * edge).astype(np.uint8), ["background", "vessel"], [0, 1], affine)
    assert -error <= row["mean_radius_mm"] / edge - radius <= 0.1


def test_a_picture_is_measured_in_pixels():
    label = np.zeros((9, 9), np.uint8)
    np.fill_diagonal(label, 1)
    (row,) = measure_classes(label, ["background", "crack"], [0, 255], np.eye(3))
    assert row["centerline_mm"] == pytest.approx(8 * math.sqrt(2), abs=1e-3) and row["volume_mm3"] == 9


def test_the_table_is_written_and_handed_on(label, tmp_path):
    numbers = ClassTable(NAMES, VALUES)(name="scan", labels=label, affine=AFFINE, output_dir=tmp_path)
    rows = list(csv.DictReader((tmp_path / "scan.csv").open()))
    assert [row["class"] for row in rows] == NAMES[1:] and rows[1]["mean_radius_mm"] == ""
    assert set(numbers["classes"]) == {"vessel", "nerve"} and numbers["classes"]["vessel"]["volume_mm3"] == 8


def test_centreline_files_are_named_after_scan_and_class(label, tmp_path):
    CenterlineFiles(NAMES)(name="scan.1", labels=label, affine=AFFINE, output_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scan.1.mrk.json",
        "scan.1.vtp",
        "scan.1_01_vessel.swc",
        "scan.1_03_nerve.swc",
    ]


def test_files_of_classes_that_are_gone_go(label, tmp_path):
    write = CenterlineFiles(NAMES, ["swc"])
    write(name="scan", labels=label, affine=AFFINE, output_dir=tmp_path)
    write(name="scan", labels=np.where(label == 3, 0, label), affine=AFFINE, output_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scan_01_vessel.swc"]


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="formats must be some of vtp, markups, swc, got 'stl'"):
        CenterlineFiles(NAMES, ["stl"])


def test_a_repair_measures_in_mm(label):
    # the lone voxel of class 3 is 1 mm3
    assert Repair(NAMES, min_volume=1.0)(labels=label, affine=AFFINE, probabilities=None)[8, 8, 6] == 3
    repaired = Repair(NAMES, min_volume=1.1)(labels=label, affine=AFFINE, probabilities=None)
    assert repaired[8, 8, 6] == 0 and repaired.dtype == label.dtype and label[8, 8, 6] == 3


def test_a_picture_shows_the_scan_and_the_classes(label, tmp_path):
    image = np.random.default_rng(0).normal(size=(1, *label.shape)).astype(np.float32)
    ScanPicture(NAMES)(
        name="scan", labels=label, affine=AFFINE, output_dir=tmp_path, load=lambda: SimpleNamespace(image=image)
    )
    picture = np.asarray(Image.open(tmp_path / "pictures" / "scan.png").convert("RGB"))
    half = picture.shape[1] // 2
    # greys on the left, colours on the right
    saturation = np.ptp(picture[60:-60].astype(int), axis=-1)
    assert saturation[:, :half].max() < 30 < saturation[:, half:].max()


def test_pictures_are_upright(label):
    """The same scan, stored from the other side, looks the same."""
    image = label[None].astype(np.float32)
    straight = project_scan(image, label, AFFINE)
    other_way = np.diag([-0.5, 1.0, 2.0, 1.0])
    other_way[0, 3] = 9 * 0.5
    for one, other in zip(straight, project_scan(image[:, ::-1], label[::-1], other_way), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_of_a_picture_run_downwards():
    label = np.zeros((6, 4), np.uint8)  # width, height
    label[0, 0] = 1
    image = np.zeros((3, 6, 4), np.float32)
    image[0, 0, 0] = 255
    left, right, ratio = project_scan(image, label, np.eye(3))
    assert left.shape == (4, 6, 3) and ratio == pytest.approx(4 / 6)
    assert left[-1, 0].tolist() == [1, 0, 0] and right[-1, 0].any() and not right[0].any()


def test_another_grid_is_refused(label):
    with pytest.raises(ValueError, match=r"one grid, got shapes \(1, 3, 3, 3\) and \(10, 12, 8\)"):
        project_scan(np.zeros((1, 3, 3, 3)), label, AFFINE)
