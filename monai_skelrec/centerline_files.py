"""Step "label map -> files of centrelines": VTK PolyData, 3D Slicer markups and SWC, with radii, in millimetres.

All three hold LPS coordinates (towards the patient's left, back and head), as DICOM, ITK and 3D Slicer's files do.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order

from .centerline_graphs import CenterlineGraph, centerline_graph, inscribed_radii
from .files import replace
from .grids import voxel_size
from .projections import COLOURS
from .skeletons import skeleton

__all__ = ["ClassCenterline", "class_centerlines", "swc_name", "write_markups", "write_swc", "write_vtp"]

_MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
# 0.1 micrometres
_DECIMALS = 4


@dataclass(frozen=True)
class ClassCenterline:
    """The centreline of one class of a label map.

    Attributes:
        index: of the class.
        name: of the class.
        graph: voxels of the centreline, edges and branches; its points are indices of the label map.
        points_mm: the voxels' centres in LPS coordinates, shape (n, 3).
        radii_mm: at each point, see :py:func:`monai_skelrec.centerline_graphs.inscribed_radii`.
    """

    index: int
    name: str
    graph: CenterlineGraph
    points_mm: np.ndarray
    radii_mm: np.ndarray

    @property
    def length_mm(self) -> float:
        """Sum of the edges' lengths, as :py:func:`monai_skelrec.tree_scores.centerline_length`."""
        one, other = self.points_mm[self.graph.edges.T]
        return float(np.linalg.norm(one - other, axis=1).sum())


def class_centerlines(
    label: np.ndarray, class_names: Sequence[str], affine: np.ndarray | None = None
) -> list[ClassCenterline]:
    """Thin each class of a label map on its own, as the scores do.

    A centreline ends about one radius before its vessel does. Where two classes meet, each ends on its own side.

    Args:
        label: class indices, shape (H, W) or (H, W, D).
        class_names: name of each class, background first.
        affine: from array indices to RAS+ millimetres, shape (4, 4), as nibabel's. Pictures have none: None, or what
            is not (4, 4), leaves array indices as they are, third coordinate 0, in pixels.

    Returns:
        One for each class that is there, in ascending order.

    Raises:
        ValueError: when the label map holds an index without a name.
    """
    highest = int(label.max(initial=0))
    if highest >= len(class_names):
        raise ValueError(f"the label map holds class {highest}, but there are {len(class_names)} class names.")
    is_placed = affine is not None and np.shape(affine) == (4, 4)
    spacing = voxel_size(np.asarray(affine))[: label.ndim] if is_placed else None
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=float) if is_placed else np.eye(4)
    found = []
    for index, box in enumerate(ndimage.find_objects(label) if highest else (), start=1):
        if box is None:
            continue
        mask = label[box] == index
        graph = centerline_graph(skeleton(mask))
        radii = inscribed_radii(mask, graph.points, spacing)
        points = graph.points + [side.start for side in box]
        graph = CenterlineGraph(points, graph.edges, graph.nodes, graph.branches)
        in_space = np.pad(points, ((0, 0), (0, 3 - label.ndim)))
        points_mm = in_space @ to_lps[:3, :3].T + to_lps[:3, 3]
        found.append(ClassCenterline(index, class_names[index], graph, points_mm, radii))
    return found


# --- VTK PolyData ----------------------------------------------------------------------------------------------------


def write_vtp(path: str | Path, centerlines: Iterable[ClassCenterline]) -> None:
    """Write the centrelines of all classes as one file of VTK PolyData (XML).

    A line for each branch, a vertex for each lone voxel. Point data: ``Radius`` (mm) and ``ClassId``. Cell data:
    ``ClassId`` and ``BranchId`` (from 0, vertices -1). Field data: ``ClassNames``, at the place of each class index,
    and ``SPACE``, "LPS", by which 3D Slicer knows the coordinate system.

    Args:
        path: ``.vtp``; replaced at once or not at all.
        centerlines: of :py:func:`class_centerlines`.
    """
    centerlines = list(centerlines)
    starts = np.cumsum([0, *(len(line.points_mm) for line in centerlines)])
    points = np.concatenate([np.zeros((0, 3)), *(line.points_mm for line in centerlines)])
    radii = np.concatenate([np.zeros(0), *(line.radii_mm for line in centerlines)])
    of_point = np.concatenate(
        [np.zeros(0, np.int32), *(np.full(len(line.points_mm), line.index, np.int32) for line in centerlines)]
    )
    lone, branches, of_vertex, of_branch = [], [], [], []
    for start, line in zip(starts[:-1], centerlines, strict=True):
        for point in _lone_points(line.graph):
            lone.append(np.array([start + point]))
            of_vertex.append(line.index)
        for branch in line.graph.branches:
            branches.append(start + branch)
            of_branch.append(line.index)
    names = [""] * (max((line.index for line in centerlines), default=0) + 1)
    for line in centerlines:
        names[line.index] = line.name

    content = [
        '<?xml version="1.0"?>',
        '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">',
        "<PolyData>",
        f"<FieldData>{_string_array('SPACE', ['LPS'])}{_string_array('ClassNames', names)}</FieldData>",
        f'<Piece NumberOfPoints="{len(points)}" NumberOfVerts="{len(lone)}" NumberOfLines="{len(branches)}" '
        'NumberOfStrips="0" NumberOfPolys="0">',
        f"<PointData Scalars=\"Radius\">{_array('Radius', radii)}{_array('ClassId', of_point)}</PointData>",
        # vertices come before lines in the numbering of cells
        f"<CellData>{_array('ClassId', np.array(of_vertex + of_branch, np.int32))}",
        f"{_array('BranchId', np.array([-1] * len(lone) + list(range(len(branches))), np.int32))}</CellData>",
        f"<Points>{_array('Points', points, components=3)}</Points>",
        f"<Verts>{_cells(lone)}</Verts>",
        f"<Lines>{_cells(branches)}</Lines>",
        "</Piece></PolyData></VTKFile>",
    ]
    _write(path, "\n".join(content) + "\n")


def _array(name: str, values: np.ndarray, components: int = 1) -> str:
    kind = {"f": "Float", "i": "Int"}[values.dtype.kind] + str(8 * values.dtype.itemsize)
    return (
        f'<DataArray type="{kind}" Name={quoteattr(name)} NumberOfComponents="{components}" format="binary">'
        f"{_encoded(np.ascontiguousarray(values, values.dtype.newbyteorder('<')).tobytes())}</DataArray>"
    )


def _string_array(name: str, values: Sequence[str]) -> str:
    text = b"".join(value.encode() + b"\0" for value in values)
    return (
        f'<Array type="String" Name={quoteattr(name)} NumberOfTuples="{len(values)}" format="binary">'
        f"{_encoded(text)}</Array>"
    )


def _encoded(content: bytes) -> str:
    # the length in bytes, then the content
    return base64.b64encode(np.array([len(content)], "<u8").tobytes() + content).decode()


def _cells(cells: Sequence[np.ndarray]) -> str:
    members = np.concatenate([np.zeros(0, np.int64), *cells]).astype(np.int64)
    ends = np.cumsum([len(cell) for cell in cells], dtype=np.int64)
    return _array("connectivity", members) + _array("offsets", ends)


# --- 3D Slicer markups -----------------------------------------------------------------------------------------------


def write_markups(path: str | Path, centerlines: Iterable[ClassCenterline]) -> None:
    """Write the centrelines of all classes as one file of 3D Slicer markups.

    A curve for each branch, a closed curve for a ring, a point for each lone voxel; named after the class and numbered.
    The radius at each control point is a measurement of the curve.

    Args:
        path: ``.mrk.json``; replaced at once or not at all.
        centerlines: of :py:func:`class_centerlines`.
    """
    markups = []
    for line in centerlines:
        ring = [len(branch) > 2 and branch[0] == branch[-1] for branch in line.graph.branches]
        parts = [
            ("ClosedCurve" if closed else "Curve", branch[:-1] if closed else branch)
            for closed, branch in zip(ring, line.graph.branches, strict=True)
        ]
        parts += [("Fiducial", np.array([point])) for point in _lone_points(line.graph)]
        colour = (COLOURS[(line.index - 1) % len(COLOURS)] / 255).round(4).tolist()
        for number, (kind, part) in enumerate(parts, start=1):
            markups.append(_markup(kind, f"{line.name} {number}", line.points_mm[part], line.radii_mm[part], colour))
    _write(path, json.dumps({"@schema": _MARKUPS_SCHEMA, "markups": markups}, indent=1) + "\n")


def _markup(kind: str, name: str, points: np.ndarray, radii: np.ndarray, colour: list[float]) -> dict[str, object]:
    return {
        "type": kind,
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "labelFormat": "%N-%d",
        "controlPoints": [
            {"id": str(number), "position": position, "positionStatus": "defined"}
            for number, position in enumerate(points.round(_DECIMALS).tolist(), start=1)
        ],
        "measurements": [
            {
                "name": "radius",
                "enabled": True,
                "value": round(float(radii.mean()), _DECIMALS),
                "units": "mm",
                "description": "distance to the nearest voxel outside the class, mean and at each control point",
                "printFormat": "%5.2f %s",
                "controlPointValues": radii.round(_DECIMALS).tolist(),
            }
        ],
        # a control point at every voxel: glyphs would hide the curve
        "display": {"color": colour, "selectedColor": colour, "glyphScale": 0.3, "pointLabelsVisibility": False},
    }


# --- SWC -------------------------------------------------------------------------------------------------------------


def write_swc(path: str | Path, centerline: ClassCenterline) -> None:
    """Write the centreline of one class as SWC, a tree for each connected piece.

    SWC knows no loops: of each loop one edge is left out, in a comment that names its two samples.

    Args:
        path: ``.swc``; replaced at once or not at all.
        centerline: of :py:func:`class_centerlines`.
    """
    graph = centerline.graph
    order, parent = _trees(graph)
    number = np.zeros(len(order), dtype=np.int64)
    number[order] = np.arange(1, len(order) + 1)
    one, other = graph.edges.T
    loops = graph.edges[(parent[one] != other) & (parent[other] != one)]
    lines = [
        f"# class {centerline.index}: {' '.join(centerline.name.split())}",
        "# coordinates: LPS (to the patient's left, back and head), millimetres",
        "# a sample for each voxel of the centreline; type 0 (undefined)",
        "# radius: distance to the nearest voxel outside the class, millimetres",
        *(f"# loop: samples {number[first]} and {number[second]} are neighbours too" for first, second in loops),
        "# id type x y z radius parent",
    ]
    for point in order:
        x, y, z = centerline.points_mm[point]
        above = number[parent[point]] if parent[point] >= 0 else -1
        lines.append(f"{number[point]} 0 {x:.4f} {y:.4f} {z:.4f} {centerline.radii_mm[point]:.4f} {above}")
    _write(path, "\n".join(lines) + "\n")


def _trees(graph: CenterlineGraph) -> tuple[np.ndarray, np.ndarray]:
    """Points in an order in which parents come first, and each point's parent, -1 for roots."""
    size = len(graph.points)
    one, other = graph.edges.T
    table = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(size, size)).tocsr()
    parent = np.full(size, -1)
    seen = np.zeros(size, dtype=bool)
    orders = [np.zeros(0, np.int64)]
    ends = graph.nodes[np.bincount(graph.edges.ravel(), minlength=size)[graph.nodes] <= 1]
    # a tree begins at an end where it has one
    for start in [*ends, *range(size)]:
        if not seen[start]:
            reached, before = breadth_first_order(table, start, directed=False)
            seen[reached] = True
            parent[reached[1:]] = before[reached[1:]]
            orders.append(reached.astype(np.int64))
    return np.concatenate(orders), parent


def swc_name(scan: str, index: int, class_name: str) -> str:
    """File name of a scan's class: its index, and its name without what a file system may refuse."""
    return f"{scan}_{index:02d}_{re.sub(r'[^A-Za-z0-9]+', '-', class_name).strip('-')}.swc"


def _lone_points(graph: CenterlineGraph) -> np.ndarray:
    return graph.nodes[np.bincount(graph.edges.ravel(), minlength=len(graph.points))[graph.nodes] == 0]


def _write(path: str | Path, text: str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda beside: beside.write_text(text, encoding="utf-8"))
