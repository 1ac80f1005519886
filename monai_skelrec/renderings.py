"""Folder of real label maps -> the data set of scans in which they would be the right answer.

The anatomy is real, the image is drawn by :py:func:`monai_skelrec.render`: vessels that a map holds beside the classes
of the task are seen in the image and are background in the label, as in a real scan.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from tqdm import tqdm

from .datasets import VOLUMES
from .files import replace
from .label_maps import read_image, read_label_map, voxel_size
from .mask_scores import bounding_box
from .phantoms import render

__all__ = ["write_renderings"]

_TOPCOW = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15)
_MODALITIES = ("ct", "mr")
_SOURCES = "sources.csv"


class _Job(NamedTuple):
    source: Path
    number: int
    modality: str
    output_dir: Path
    label_values: tuple[int, ...]
    margin_mm: float | None
    seed: int

    @property
    def name(self) -> str:
        return f"topcow_{self.modality}_{self.number:03d}"


def write_renderings(
    label_map_dir: str,
    output_dir: str,
    label_values: Sequence[int] = _TOPCOW,
    modality: str = "all",
    margin_mm: float | None = None,
    seed: int = 0,
    num_workers: int = 1,
) -> None:
    """Write ``output_dir`` in TopCoW's layout: a drawn scan and the label of every label map in a folder.

    ``sources.csv`` names the map that each case came from. A case depends on its own map, number and ``seed`` alone,
    so any number of processes writes the same voxels.

    Args:
        label_map_dir: folder of label maps, NIfTI, MHA, NRRD or NumPy (taken at 1 mm). Where every name ends in a
            number of its own, as in ``topcow_ct_017.nii.gz``, this is the number of the case; elsewhere the maps are
            numbered in the order of their names.
        output_dir: folder, made when it is not there.
        label_values: the values that stay in the label, background first. All others become background there, and are
            as bright as the vessels in the image.
        modality: ``"ct"`` or ``"mr"``, or ``"all"``: every map in both.
        margin_mm: only this much is kept around the labelled voxels; None keeps the whole grid.
        seed: of texture, noise and clutter; another seed gives other scans of the same anatomy.
        num_workers: processes.

    Raises:
        FileNotFoundError: when ``label_map_dir`` is no folder or holds no label map.
        FileExistsError: when ``output_dir`` holds cases already.
        ValueError: when the modality is unknown, ``margin_mm`` is negative or a map holds none of ``label_values``.
    """
    if modality not in ("all", *_MODALITIES):
        raise ValueError(f"modality must be 'all', 'ct' or 'mr', got {modality!r}.")
    if margin_mm is not None and margin_mm < 0:
        raise ValueError(f"margin_mm must be at least 0, got {margin_mm}.")
    folder, target = Path(label_map_dir), Path(output_dir)
    maps = sorted(path for path in folder.iterdir() if path.name.lower().endswith(VOLUMES)) if folder.is_dir() else []
    if not maps:
        raise FileNotFoundError(f"{label_map_dir!r} holds no label maps ({', '.join(VOLUMES)}).")
    if (target / "imagesTr").exists() or (target / "cow_seg_labelsTr").exists():
        raise FileExistsError(f"{output_dir!r} holds cases already; take another folder.")
    for name in ("imagesTr", "cow_seg_labelsTr"):
        (target / name).mkdir(parents=True)
    kinds = _MODALITIES if modality == "all" else (modality,)
    jobs = [
        _Job(path, number, kind, target, tuple(label_values), margin_mm, seed)
        for path, number in zip(maps, _numbers(maps))
        for kind in kinds
    ]
    progress = tqdm(total=len(jobs), desc="scans", unit="scan")
    if num_workers > 1:
        with ProcessPoolExecutor(num_workers) as pool:
            for _ in pool.map(_write_case, jobs):
                progress.update()
    else:
        for job in jobs:
            _write_case(job)
            progress.update()
    progress.close()
    replace(target / _SOURCES, lambda beside: _write_sources(beside, jobs))


def _numbers(maps: Sequence[Path]) -> list[int]:
    stems = [re.sub(r"(\.[a-z]+)+$", "", path.name.lower()) for path in maps]
    endings = [re.search(r"(\d+)$", stem) for stem in stems]
    numbers = [int(ending[1]) for ending in endings if ending]
    return numbers if len(set(numbers)) == len(maps) else list(range(1, len(maps) + 1))


def _write_case(job: _Job) -> None:
    everything, _ = read_label_map(job.source)
    affine = read_image(job.source)[1]
    if everything.ndim != 3:
        raise ValueError(f"{job.source} must be 3D, got shape {everything.shape}.")
    affine = np.eye(4) if affine is None else affine
    background = job.label_values[0]
    label = np.where(np.isin(everything, job.label_values), everything, background)
    if not (label != background).any():
        raise ValueError(f"{job.source} holds none of the label values {list(job.label_values[1:])}.")
    if job.margin_mm is not None:
        box = _around(label != background, job.margin_mm, voxel_size(affine))
        label, everything, affine = label[box], everything[box], affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    # a file's own order (Fortran's in NIfTI) would make every step of the rendering several times slower
    label, everything = np.ascontiguousarray(label), np.ascontiguousarray(everything)
    seed = 1000 * job.seed + job.number
    image = render(label, seed, job.modality, visible=everything, spacing=voxel_size(affine))
    _write_nifti(job.output_dir / "imagesTr" / f"{job.name}_0000.nii.gz", image, affine)
    _write_nifti(job.output_dir / "cow_seg_labelsTr" / f"{job.name}.nii.gz", label.astype(np.uint8), affine)


def _around(mask: np.ndarray, margin_mm: float, spacing: Sequence[float]) -> tuple[slice, ...]:
    """The box of a mask and what lies within a margin of it."""
    steps = [int(np.ceil(margin_mm / edge)) for edge in spacing]
    return tuple(
        slice(max(side.start - step, 0), min(side.stop + step, size))
        for side, step, size in zip(bounding_box(mask), steps, mask.shape)
    )


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    replace(path, lambda beside: beside.write_bytes(_compressed(nibabel.Nifti1Image(array, affine))))


def _compressed(image: nibabel.Nifti1Image) -> bytes:
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _write_sources(path: Path, jobs: Sequence[_Job]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "source"])
        writer.writerows([job.name, job.source.name] for job in jobs)
