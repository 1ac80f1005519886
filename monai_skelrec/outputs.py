"""Step "label map of a scan -> what is wanted beside it": repairs before it is written; lines, numbers, pictures after.

Callables of one scan, for the lists ``corrections`` and ``outputs`` of scans.yaml.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from .centerline_files import class_centerlines, swc_name, write_markups, write_swc, write_vtp
from .files import replace
from .grids import voxel_size
from .postprocessing import postprocess
from .scan_pictures import draw_scan

__all__ = ["CenterlineFiles", "ClassTable", "Repair", "ScanPicture", "measure_classes"]

FORMATS = ("vtp", "markups", "swc")
PICTURES = "pictures"  # folder beside the label maps
_COLUMNS = ("class", "value", "voxels", "volume_mm3", "components", "centerline_mm", "branches", "mean_radius_mm")


class Repair:
    """A correction: :py:func:`monai_skelrec.postprocessing.postprocess` with the scan's own voxel size.

    Args:
        class_names: background first.
        max_gap, min_probability, contacts, isolated, min_volume, largest: see there; lengths in mm.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        max_gap: float | None = None,
        min_probability: float = 0.15,
        contacts: str | Iterable[Sequence[str]] | None = None,
        isolated: str = "keep",
        min_volume: float | None = None,
        largest: int | Mapping[str, int] | None = None,
    ) -> None:
        self.class_names = tuple(class_names)
        self.max_gap = max_gap
        self.min_probability = min_probability
        self.contacts = contacts
        self.isolated = isolated
        self.min_volume = min_volume
        self.largest = largest

    def __call__(self, *, labels: np.ndarray, affine: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
        """
        Args:
            labels: class indices, shape (H, W) or (H, W, D).
            affine: from indices to mm.
            probabilities: shape (C, ...); only ``max_gap`` needs them.
        """
        return postprocess(
            labels,
            self.class_names,
            probabilities,
            voxel_size(affine)[: labels.ndim],
            max_gap=self.max_gap,
            min_probability=self.min_probability,
            contacts=self.contacts,
            isolated=self.isolated,
            min_volume=self.min_volume,
            largest=self.largest,
        )


class CenterlineFiles:
    """An output: each class's centreline with radii, as ``NAME.vtp``, ``NAME.mrk.json`` and ``NAME_01_CLASS.swc``.

    Args:
        class_names: background first.
        formats: some of ``"vtp"``, ``"markups"`` and ``"swc"``.

    Raises:
        ValueError: when a format is none of these.
    """

    def __init__(self, class_names: Sequence[str], formats: Sequence[str] = FORMATS) -> None:
        unknown = [each for each in formats if each not in FORMATS]
        if unknown:
            raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {unknown[0]!r}.")
        self.class_names = tuple(class_names)
        self.formats = tuple(formats)

    def __call__(
        self,
        *,
        name: str,
        labels: np.ndarray,
        affine: np.ndarray,
        output_dir: str | Path,
        probabilities: np.ndarray | None = None,
        load: Callable[[], Any] | None = None,
    ) -> dict[str, Any]:
        """Write the files; those of an earlier run, of classes that are not there any more, go."""
        folder = Path(output_dir)
        lines = class_centerlines(labels, self.class_names, affine)
        if "vtp" in self.formats:
            write_vtp(folder / f"{name}.vtp", lines)
        if "markups" in self.formats:
            write_markups(folder / f"{name}.mrk.json", lines)
        if "swc" in self.formats:
            by_index = {line.index: line for line in lines}
            for index, class_name in enumerate(self.class_names[1:], start=1):
                path = folder / swc_name(name, index, class_name)
                if index in by_index:
                    write_swc(path, by_index[index])
                else:
                    path.unlink(missing_ok=True)
        return {}


class ClassTable:
    """An output: ``NAME.csv``, a row for each class; see :py:func:`measure_classes`.

    Args:
        class_names: background first.
        label_values: value on disk of each class.
    """

    def __init__(self, class_names: Sequence[str], label_values: Sequence[int]) -> None:
        self.class_names = tuple(class_names)
        self.label_values = tuple(label_values)

    def __call__(
        self,
        *,
        name: str,
        labels: np.ndarray,
        affine: np.ndarray,
        output_dir: str | Path,
        probabilities: np.ndarray | None = None,
        load: Callable[[], Any] | None = None,
    ) -> dict[str, Any]:
        """Write the table; the record of the scan gets it too, without the classes that are not there."""
        rows = measure_classes(labels, self.class_names, self.label_values, affine)
        text = io.StringIO()
        table = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        path = Path(output_dir) / f"{name}.csv"
        replace(path, lambda beside: beside.write_text(text.getvalue(), encoding="utf-8"))
        numbers = {row["class"]: {key: row[key] for key in _COLUMNS[2:]} for row in rows if row["voxels"]}
        return {"classes": numbers}


def measure_classes(
    labels: np.ndarray, class_names: Sequence[str], label_values: Sequence[int], affine: np.ndarray | None
) -> list[dict[str, Any]]:
    """Measure each class of a label map.

    Args:
        labels: class indices, shape (H, W) or (H, W, D).
        class_names: background first.
        label_values: value on disk of each class.
        affine: as in :py:func:`monai_skelrec.centerline_files.class_centerlines`; without one a voxel's edge counts 1.

    Returns:
        A row for each class but background: ``class``, ``value``, ``voxels``, ``volume_mm3`` (of pictures the area),
        ``components`` (26 neighbours, 8 in 2D), ``centerline_mm`` (as the scores measure it), ``branches`` and
        ``mean_radius_mm`` over the centreline's voxels, None where the class is absent.
    """
    is_placed = affine is not None and np.shape(affine) == (4, 4)
    voxel = float(np.prod(voxel_size(np.asarray(affine))[: labels.ndim])) if is_placed else 1.0
    lines = {line.index: line for line in class_centerlines(labels, class_names, affine)}
    boxes = ndimage.find_objects(labels, max_label=len(class_names) - 1)
    rows = []
    for index, (class_name, value, box) in enumerate(
        zip(class_names[1:], label_values[1:], boxes, strict=True), start=1
    ):
        row: dict[str, Any] = dict.fromkeys(_COLUMNS, 0) | {"class": class_name, "value": value, "mean_radius_mm": None}
        if box is not None:
            mask, line = labels[box] == index, lines[index]
            voxels = int(np.count_nonzero(mask))
            row |= {
                "voxels": voxels,
                "volume_mm3": round(voxels * voxel, 4),
                "components": int(ndimage.label(mask, np.ones((3,) * labels.ndim))[1]),
                "centerline_mm": round(line.length_mm, 4),
                "branches": len(line.graph.branches),
                "mean_radius_mm": round(float(line.radii_mm.mean()), 4),
            }
        rows.append(row)
    return rows


class ScanPicture:
    """An output: ``pictures/NAME.png``, see :py:func:`monai_skelrec.scan_pictures.draw_scan`.

    In a folder of its own: a label map may be a PNG too, and whoever scores a folder of label maps takes a picture in
    it for one.

    Args:
        class_names: background first.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)

    def __call__(
        self,
        *,
        name: str,
        labels: np.ndarray,
        affine: np.ndarray,
        output_dir: str | Path,
        load: Callable[[], Any],
        probabilities: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Draw it; ``load()`` gives something whose ``image`` has the shape C, then that of ``labels``."""
        folder = Path(output_dir) / PICTURES
        folder.mkdir(exist_ok=True)
        draw_scan(folder / f"{name}.png", np.asarray(load().image), labels, self.class_names, affine)
        return {}
