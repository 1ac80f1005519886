"""Step "file on disk -> grid": where the voxels of a file lie, and whether two files lie on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import nibabel
import numpy as np
from monai.utils import optional_import

from .crack_masks import read_crack_mask

__all__ = [
    "CRACK_MASKS",
    "PICTURES",
    "VOLUMES",
    "Grid",
    "affine_of_itk",
    "ending",
    "grid_difference",
    "read_grid",
    "reason_of",
    "voxel_size",
]

itk, _ = optional_import("itk")
pil_image, _ = optional_import("PIL.Image")

VOLUMES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".npy")
CRACK_MASKS = (".mat",)  # CrackForest's
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".gif", ".bmp")

# half a voxel is where resampling two files apart begins to show, and spacing decides about every length
_SHIFT, _STRETCH, _TURN = 0.5, 0.01, 1e-3


class Grid(NamedTuple):
    """Where the voxels of a file are; ``affine`` leads from indices to RAS+ coordinates, None where there is none."""

    shape: tuple[int, ...]
    affine: np.ndarray | None


def reason_of(error: BaseException) -> str:
    """What a library says of a file that it cannot read: one line, without a full stop.

    Args:
        error: the library's own exception; its first cause speaks.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


def read_grid(path: str) -> Grid:
    """Shape without channels, and affine, from the header alone; pictures are (width, height).

    Raises:
        ValueError: when no reader knows the file, or a picture has more than 8 bits a channel. Libraries raise errors
            of their own for damaged files.
    """
    lower = path.lower()
    if lower.endswith(CRACK_MASKS):
        return Grid(read_crack_mask(path).shape[::-1], None)
    if lower.endswith(".npy"):
        return Grid(np.load(path, mmap_mode="r").shape, None)
    if lower.endswith(PICTURES):
        with pil_image.open(path) as picture:
            if picture.mode[0] in "IF":
                raise ValueError(f"it has more than 8 bits a channel (mode {picture.mode}), which would be cut off")
            return Grid(picture.size, None)
    if lower.endswith((".nii", ".nii.gz")):
        header = cast(nibabel.spatialimages.SpatialImage, nibabel.load(path))
        shape, affine = tuple(header.shape), np.asarray(header.affine)
    else:
        reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
        if reader is None:
            raise ValueError("ITK knows no reader for it")
        reader.SetFileName(path)
        reader.ReadImageInformation()
        axes = range(reader.GetNumberOfDimensions())
        shape = tuple(int(reader.GetDimensions(axis)) for axis in axes)
        direction = np.stack([np.asarray(reader.GetDirection(axis)) for axis in axes], axis=1)
        spacing, origin = ([get(axis) for axis in axes] for get in (reader.GetSpacing, reader.GetOrigin))
        affine = affine_of_itk(direction, spacing, origin)
    # NIfTI and MHA often store a volume with a fourth axis of length 1
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return Grid(shape, affine if affine.shape == (len(shape) + 1,) * 2 else None)


def affine_of_itk(direction: Any, spacing: Sequence[float], origin: Sequence[float]) -> np.ndarray:
    """Affine to RAS+ coordinates, as nibabel's, of what ITK says about an image."""
    affine = np.eye(len(spacing) + 1)
    affine[:-1, :-1] = np.asarray(direction) * np.asarray(spacing)
    affine[:-1, -1] = origin
    affine[:2] *= -1  # ITK counts towards left and posterior, NIfTI towards right and anterior
    return affine


def voxel_size(affine: np.ndarray) -> tuple[float, ...]:
    """Edges of a voxel, in the unit of the affine (mm)."""
    return tuple(np.linalg.norm(affine[:-1, :-1], axis=0).tolist())


def grid_difference(first: Grid, second: Grid) -> str | None:
    """Say by what two grids differ: shape, spacing, direction or origin.

    Grids agree where no corner of one lies more than half a voxel from the same corner of the other, and no edge of a
    voxel differs by more than 1 %; headers round. A format without an affine agrees with any of its shape.

    Returns:
        Which of them differ, with their values, or None.

    Example:
        >>> grid_difference(Grid((4, 4), np.diag([1, 1, 1])), Grid((4, 4), np.diag([1, 2, 1])))
        'spacing (1, 1) and (1, 2)'
    """
    if first.shape != second.shape:
        return f"shape {first.shape} and {second.shape}"
    if first.affine is None or second.affine is None:
        return None
    corners = np.array([[*corner, 1] for corner in product(*((0, size) for size in first.shape))]).T
    # in voxels of the first
    shift = np.linalg.solve(first.affine, (second.affine - first.affine) @ corners)[:-1]
    edges, others = (np.array(voxel_size(grid.affine)) for grid in (first, second) if grid.affine is not None)
    stretched = np.abs(others / edges - 1)
    if np.abs(shift).max() <= _SHIFT and stretched.max() <= _STRETCH:
        return None
    found = []
    if stretched.max() > min(_STRETCH, _SHIFT / max(first.shape)):
        found.append(f"spacing {_shown(edges)} and {_shown(others)}")
    turns = [first.affine[:-1, :-1] / edges, second.affine[:-1, :-1] / others]
    if np.abs(turns[0] - turns[1]).max() > _TURN:
        found.append(f"direction {_shown(turns[0].ravel())} and {_shown(turns[1].ravel())}")
    origins = [grid.affine[:-1, -1] for grid in (first, second) if grid.affine is not None]
    if np.abs(shift[:, 0]).max() > _SHIFT or not found:
        found.append(f"origin {_shown(origins[0])} and {_shown(origins[1])}")
    return ", ".join(found)


def _shown(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.6g}' for value in values)})"


def ending(path: str | Path) -> str:
    """The ending of a file's name as the formats have it, in small letters; "" where it is none of theirs."""
    name = str(path).lower()
    return next((each for each in (*VOLUMES, ".nhdr", *PICTURES) if name.endswith(each)), "")
