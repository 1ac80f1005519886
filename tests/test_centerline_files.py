"""Files of centrelines, read back by VTK and by a reader of our own, and held against ITK's coordinates."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ElementTree

import itk
import nibabel
import numpy as np
import pytest
from jsonschema import Draft7Validator

from monai_skelrec import circle_of_willis
from monai_skelrec.centerline_files import class_centerlines, swc_name, write_markups, write_swc, write_vtp
from monai_skelrec.skeletons import skeleton
from monai_skelrec.tree_scores import centerline_length

NAMES = ["background", "trunk", "R-branch", "ring & dot"]


def turned(degrees: tuple[float, float, float], spacing, origin) -> np.ndarray:
    """An oblique affine: spacing, then turns about x, y and z, then origin."""
    a, b, c = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


OBLIQUE = turned((20, -35, 50), (0.4, 0.5, 0.9), (-31, 12, 7))
FLIPPED = np.diag([-1.0, -1.0, 1.0, 1.0]) @ OBLIQUE


def phantom() -> np.ndarray:
    """Asymmetric: a bent line of class 1, a longer one of class 2, a ring and a dot of class 3."""
    label = np.zeros((12, 15, 19), np.uint8)
    label[1, 1, 1:7] = 1
    label[2:5, 1, 7] = 1
    label[7, 2:14, 3] = 2
    for place in ((4, 9), (4, 10), (5, 11), (6, 11), (7, 10), (7, 9), (6, 8), (5, 8)):
        label[10, place[0], place[1]] = 3
    label[3, 12, 17] = 3
    return label


def lps_of(points, affine, label) -> np.ndarray:
    """Where ITK says that voxels lie: it reads a NIfTI file that nibabel wrote."""
    return np.array([affine.TransformIndexToPhysicalPoint([int(i) for i in point]) for point in points])


@pytest.fixture(params=[OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
def case(request, tmp_path):
    label = phantom()
    nibabel.save(nibabel.Nifti1Image(label, request.param), tmp_path / "label.nii.gz")
    return label, class_centerlines(label, NAMES, request.param), itk.imread(str(tmp_path / "label.nii.gz")), tmp_path


def test_points_lie_where_itk_says(case):
    label, lines, image, _ = case
    assert [line.index for line in lines] == [1, 2, 3] and [line.name for line in lines] == NAMES[1:]
    for line in lines:
        np.testing.assert_allclose(line.points_mm, lps_of(line.graph.points, image, label), atol=1e-4)
        assert (label[tuple(line.graph.points.T)] == line.index).all()


def test_length_is_that_of_the_scores(case):
    label, lines, _, _ = case
    for line in lines:
        expected = centerline_length(skeleton(label == line.index), spacing=(0.4, 0.5, 0.9))
        assert line.length_mm == pytest.approx(expected)


def read_vtp(path) -> dict[str, np.ndarray]:
    """The arrays of a .vtp file, without VTK."""
    found = {}
    for section in ("PointData", "CellData", "Points", "Verts", "Lines"):
        for array in ElementTree.parse(path).getroot().find(f".//{section}"):
            content = base64.b64decode(array.text)
            assert int(np.frombuffer(content[:8], "<u8")[0]) == len(content) - 8
            kind = {"Float64": "<f8", "Int32": "<i4", "Int64": "<i8"}[array.get("type")]
            values = np.frombuffer(content[8:], kind)
            components = int(array.get("NumberOfComponents"))
            found[f"{section} {array.get('Name')}"] = values.reshape(-1, components) if components > 1 else values
    return found


def test_vtp_holds_points_lines_radii_and_classes(case):
    label, lines, image, folder = case
    write_vtp(folder / "a.vtp", lines)
    read = read_vtp(folder / "a.vtp")
    expected = np.concatenate([lps_of(line.graph.points, image, label) for line in lines])
    np.testing.assert_allclose(read["Points Points"], expected, atol=1e-4)
    np.testing.assert_array_equal(read["PointData Radius"], np.concatenate([line.radii_mm for line in lines]))
    ends = read["Lines offsets"]
    branches = np.split(read["Lines connectivity"], ends[:-1])
    # the lone dot is a vertex, and vertices come first
    assert len(read["Verts connectivity"]) == 1
    np.testing.assert_array_equal(read["CellData ClassId"], [3, 1, 2, 3])
    np.testing.assert_array_equal(read["CellData BranchId"], [-1, 0, 1, 2])
    for branch, index in zip(branches, (1, 2, 3), strict=True):
        assert set(read["PointData ClassId"][branch]) == {index}
    lengths = [np.linalg.norm(np.diff(read["Points Points"][branch], axis=0), axis=1).sum() for branch in branches]
    assert lengths == pytest.approx([line.length_mm for line in lines])


def test_vtk_reads_the_vtp(case):
    _, lines, _, folder = case
    write_vtp(folder / "a.vtp", lines)
    vtk = pytest.importorskip("vtk")
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(folder / "a.vtp"))
    reader.Update()
    read = reader.GetOutput()
    numpy_support = pytest.importorskip("vtk.util.numpy_support")
    points = numpy_support.vtk_to_numpy(read.GetPoints().GetData())
    np.testing.assert_array_equal(points, np.concatenate([line.points_mm for line in lines]))
    radius = numpy_support.vtk_to_numpy(read.GetPointData().GetArray("Radius"))
    np.testing.assert_array_equal(radius, np.concatenate([line.radii_mm for line in lines]))
    assert read.GetNumberOfLines() == 3 and read.GetNumberOfVerts() == 1
    names = read.GetFieldData().GetAbstractArray("ClassNames")
    for number, index in enumerate((3, 1, 2, 3)):
        cell = read.GetCell(number)
        assert read.GetCellData().GetArray("ClassId").GetValue(number) == index
        assert names.GetValue(index) == NAMES[index]
        inside = {
            int(read.GetPointData().GetArray("ClassId").GetValue(i))
            for i in np.unique([cell.GetPointId(place) for place in range(cell.GetNumberOfPoints())])
        }
        assert inside == {index}
    # 3D Slicer asks this array which way the axes run
    assert read.GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "LPS"


def test_vtk_reads_a_vtp_without_any_class(tmp_path):
    write_vtp(tmp_path / "a.vtp", [])
    vtk = pytest.importorskip("vtk")
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(tmp_path / "a.vtp"))
    reader.Update()
    assert reader.GetOutput().GetNumberOfPoints() == 0 and reader.GetErrorCode() == 0


# what 3D Slicer's markups schema 1.0.3 asks of the parts that we write
MARKUPS = {
    "type": "object",
    "required": ["@schema", "markups"],
    "properties": {
        "@schema": {"type": "string", "pattern": r"markups-schema-v1\.\d\.\d\.json#$"},
        "markups": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type"],
                "properties": {
                    "type": {"enum": ["Fiducial", "Line", "Angle", "Curve", "ClosedCurve", "Plane", "ROI"]},
                    "name": {"type": "string"},
                    "coordinateSystem": {"enum": ["LPS", "RAS"]},
                    "coordinateUnits": {"enum": ["mm", "um"]},
                    "locked": {"type": "boolean"},
                    "labelFormat": {"type": "string"},
                    "controlPoints": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "id": {"type": "string"},
                                "position": {
                                    "type": "array",
                                    "items": {"type": "number"},
                                    "minItems": 3,
                                    "maxItems": 3,
                                },
                                "positionStatus": {"enum": ["undefined", "preview", "defined"]},
                            },
                        },
                    },
                    "measurements": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "name": {"type": "string"},
                                "enabled": {"type": "boolean"},
                                "value": {"type": "number"},
                                "units": {"type": "string"},
                                "printFormat": {"type": "string"},
                                "controlPointValues": {"type": "array", "items": {"type": "number"}},
                            },
                        },
                    },
                    "display": {
                        "type": "object",
                        "properties": {
                            "color": {
                                "type": "array",
                                "items": {"type": "number", "minimum": 0, "maximum": 1},
                                "minItems": 3,
                                "maxItems": 3,
                            },
                            "glyphScale": {"type": "number", "minimum": 0},
                            "pointLabelsVisibility": {"type": "boolean"},
                        },
                    },
                },
            },
        },
    },
}


def test_markups_hold_curves_with_radii(case):
    label, lines, image, folder = case
    write_markups(folder / "a.mrk.json", lines)
    content = json.loads((folder / "a.mrk.json").read_text())
    Draft7Validator(MARKUPS).validate(content)
    markups = content["markups"]
    assert [(markup["type"], markup["name"]) for markup in markups] == [
        ("Curve", "trunk 1"),
        ("Curve", "R-branch 1"),
        ("ClosedCurve", "ring & dot 1"),
        ("Fiducial", "ring & dot 2"),
    ]
    assert {markup["coordinateSystem"] for markup in markups} == {"LPS"}
    assert len(markups[2]["controlPoints"]) == 8  # a closed curve does not repeat its first point
    line = lines[1]
    (branch,) = line.graph.branches
    written = [point["position"] for point in markups[1]["controlPoints"]]
    np.testing.assert_allclose(written, lps_of(line.graph.points[branch], image, label), atol=1e-4)
    (radius,) = markups[1]["measurements"]
    np.testing.assert_allclose(radius["controlPointValues"], line.radii_mm[branch], atol=1e-4)


def read_swc(path):
    rows = [row.split() for row in path.read_text().splitlines() if not row.startswith("#")]
    return np.array(rows, float).reshape(-1, 7)


def test_swc_holds_trees_whose_parents_come_first(case):
    label, lines, image, folder = case
    for line in lines:
        write_swc(folder / swc_name("scan", line.index, line.name), line)
    assert sorted(path.name for path in folder.glob("*.swc")) == [
        "scan_01_trunk.swc",
        "scan_02_R-branch.swc",
        "scan_03_ring-dot.swc",
    ]
    for line in lines:
        text = (folder / swc_name("scan", line.index, line.name)).read_text()
        rows = read_swc(folder / swc_name("scan", line.index, line.name))
        assert "LPS" in text and "millimetres" in text
        np.testing.assert_array_equal(rows[:, 0], np.arange(1, len(rows) + 1))
        assert (rows[:, 6] < rows[:, 0]).all()
        expected = lps_of(line.graph.points, image, label)
        distance = np.linalg.norm(rows[:, None, 2:5] - expected, axis=-1)
        assert len(rows) == len(expected) and distance.min(0).max() < 1e-3 and distance.min(1).max() < 1e-3
        roots = int((rows[:, 6] == -1).sum())
        loops = re.findall(r"# loop: samples (\d+) and (\d+)", text)
        assert (roots, len(loops)) == ((2, 1) if line.index == 3 else (1, 0))
        # what the tree says, and the loops in the comments, is the whole centreline
        child = rows[rows[:, 6] > 0]
        length = np.linalg.norm(child[:, 2:5] - rows[child[:, 6].astype(int) - 1, 2:5], axis=1).sum()
        length += sum(np.linalg.norm(rows[int(a) - 1, 2:5] - rows[int(b) - 1, 2:5]) for a, b in loops)
        assert length == pytest.approx(line.length_mm, abs=1e-2)


@pytest.mark.parametrize("affine", [None, np.eye(3)], ids=["none", "identity"])
def test_a_picture_counts_pixels(affine):
    label = np.zeros((6, 8), np.uint8)
    label[2, 1:7] = 1
    (line,) = class_centerlines(label, ["background", "crack"], affine)
    assert set(map(tuple, line.points_mm.tolist())) == {(2.0, float(column), 0.0) for column in range(1, 7)}
    assert line.length_mm == 5 and set(line.radii_mm) == {1}


def test_a_circle_of_willis_is_written_whole(tmp_path):
    label = circle_of_willis(5)
    label[label == 15] = 13
    lines = class_centerlines(label, [str(index) for index in range(14)], np.diag([0.5, 0.5, 0.5, 1]))
    assert [line.index for line in lines] == np.unique(label[label > 0]).tolist()
    write_vtp(tmp_path / "a.vtp", lines)
    total = sum(centerline_length(skeleton(label == line.index), spacing=(0.5,) * 3) for line in lines)
    read = read_vtp(tmp_path / "a.vtp")
    branches = np.split(read["Lines connectivity"], read["Lines offsets"][:-1])
    lengths = [np.linalg.norm(np.diff(read["Points Points"][branch], axis=0), axis=1).sum() for branch in branches]
    assert sum(lengths) == pytest.approx(total)


def test_an_index_without_a_name_is_refused():
    with pytest.raises(ValueError, match="holds class 3, but there are 2 class names"):
        class_centerlines(np.full((3, 3, 3), 3), ["background", "vessel"])


def test_an_empty_label_map_has_no_centrelines():
    assert class_centerlines(np.zeros((3, 3, 3), np.uint8), NAMES, np.eye(4)) == []
