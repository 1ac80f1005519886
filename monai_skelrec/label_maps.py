"""Step "file on disk -> label map": reads images as they are stored, and turns label values into class indices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.utils import optional_import

from .crack_masks import read_crack_mask
from .grids import CRACK_MASKS, PICTURES, affine_of_itk, reason_of, voxel_size
from .mask_scores import bounding_box

__all__ = ["as_labels", "check_other_values", "read_image", "read_label_map", "to_class_indices", "voxel_size"]

itk, _ = optional_import("itk")
pil_image, _ = optional_import("PIL.Image")

_NIFTI = (".nii", ".nii.gz")
_ITK = (".mha", ".mhd", ".nrrd", ".nhdr")

Spacing = tuple[float, ...]


def read_label_map(path: str | Path) -> tuple[np.ndarray, Spacing | None]:
    """Read a label map in its stored axis order: no reorientation, no resampling.

    Volumes come as (x, y, z) from every format, so a NIfTI prediction and an MHA reference of one scan agree. Pictures
    come as (row, column), in grey.

    Args:
        path: NIfTI, MHA, MHD, NRRD, NumPy (``.npy``), or a picture (PNG, TIFF, GIF, JPEG, BMP).

    Returns:
        Integers, shape (H, W) or (H, W, D), and the voxel size in the file's unit (mm), None where the format has none.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read, is not 2D or 3D, or holds fractions.
    """
    array, affine = read_image(path)
    return as_labels(array, path), None if affine is None else voxel_size(affine)[: array.ndim]


def as_labels(array: np.ndarray, path: str | Path) -> np.ndarray:
    """Integers of a label map that may be stored as booleans or floats.

    Args:
        array: of any dtype.
        path: where it comes from, for the message.

    Returns:
        The same values; of an integer dtype.

    Raises:
        ValueError: when it holds fractions, NaN or infinity.
    """
    if array.dtype == bool:
        return array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer):
        return array
    if np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all():
        integers = array.astype(np.int64 if np.abs(array).max(initial=0) > 2**31 - 1 else np.int32)
        if (integers == array).all():
            return integers
    raise ValueError(f"{path} must hold whole numbers to be a label map, got {array.dtype} with fractions or NaN.")


def read_image(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image or label map of any dtype in its stored axis order; see :py:func:`read_label_map`.

    Returns:
        Array, shape (H, W) or (H, W, D), and its affine from indices to RAS+ coordinates as nibabel's, None where the
        format has none.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read, or is not 2D or 3D.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    name = path.name.lower()
    affine: np.ndarray | None = None
    try:
        if name.endswith(_NIFTI):
            nifti: Any = nibabel.load(path)
            array, affine = np.asanyarray(nifti.dataobj), np.asarray(nifti.affine)
        elif name.endswith(_ITK):
            image = itk.imread(str(path))
            # ITK hands out (z, y, x)
            array = itk.array_from_image(image).T
            affine = affine_of_itk(itk.array_from_matrix(image.GetDirection()), image.GetSpacing(), image.GetOrigin())
        elif name.endswith(".npy"):
            array = np.load(path)
        elif name.endswith(CRACK_MASKS):
            array = read_crack_mask(path)
        elif name.endswith(PICTURES):
            with pil_image.open(path) as picture:
                # palette and 1-bit pictures hold no grey values before conversion; 16-bit ones would lose theirs in it
                array = np.asarray(picture if picture.mode.startswith("I") else picture.convert("L"))
        else:
            raise ValueError(f"expected one of {', '.join((*_NIFTI, *_ITK, '.npy', *PICTURES))}")
    # each library has its own exceptions for a damaged file; all of them mean the same to the user
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {reason_of(error)}.") from error
    # NIfTI and MHA often store a volume with further axes of length 1
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if affine is not None and len(affine) > 4:
        affine = affine[np.ix_([0, 1, 2, -1], [0, 1, 2, -1])]
    if array.ndim not in (2, 3):
        raise ValueError(f"{path} must be 2D or 3D, got shape {array.shape}.")
    return array, affine


def to_class_indices(array: np.ndarray, label_values: Sequence[int], other_values: str = "error") -> np.ndarray:
    """Turn the values of a label map on disk into class indices.

    Args:
        array: label map, integers of any shape.
        label_values: value on disk of each class, background first; position is the class index.
        other_values: what a value not listed means: ``"error"``, ``"background"``, ``"foreground"`` (the only class of
            a binary task, such as all vessels in one), or ``"nearest"``: the class of the nearest listed value, the
            lower of two, so that masks of 0 and 255 are cut at 127 (grey borders, values that JPEG spread).

    Returns:
        Array of the same shape, uint8 (uint16 for more than 256 classes).

    Raises:
        ValueError: when ``other_values`` is none of these, is ``"error"`` and a value is not listed, or is
            ``"foreground"`` and there are not two classes.

    Example:
        >>> to_class_indices(np.array([0, 3, 4, 9]), [0, 3, 4], other_values="background")
        array([0, 1, 2, 0], dtype=uint8)
    """
    check_other_values(other_values, label_values)
    indices = np.zeros(array.shape, dtype=np.uint8 if len(label_values) <= 256 else np.uint16)
    # outside this box there is nothing to look up, and inside it memory order is no trap (NIfTI comes in Fortran's)
    box = bounding_box(array != label_values[0])
    values = np.ascontiguousarray(array[box])
    inside = np.zeros(values.shape, dtype=indices.dtype)
    listed = values == label_values[0]
    for index, value in enumerate(label_values[1:], start=1):
        here = values == value
        inside[here] = index
        listed |= here
    if other_values == "foreground":
        inside[~listed] = 1
    elif other_values == "nearest" and not listed.all():
        by_value = np.argsort(label_values)
        values_in_order = np.asarray(label_values, dtype=np.float64)[by_value]
        borders = (values_in_order[1:] + values_in_order[:-1]) / 2
        inside[~listed] = by_value[np.searchsorted(borders, values[~listed], side="left")]
    indices[box] = inside
    if other_values == "error" and not listed.all():
        unknown = np.unique(values[~listed]).tolist()
        raise ValueError(
            f"the label map holds values that are not in label_values: {', '.join(map(str, unknown[:10]))}"
            f"{' ...' if len(unknown) > 10 else ''}; list them, or set other_values to 'background'."
        )
    return indices


def check_other_values(other_values: str, label_values: Sequence[int]) -> None:
    """Refuse a meaning of unlisted values that does not exist, or does not fit the number of classes."""
    if other_values not in ("error", "background", "foreground", "nearest"):
        raise ValueError(
            f"other_values must be 'error', 'background', 'foreground' or 'nearest', got {other_values!r}."
        )
    if other_values == "foreground" and len(label_values) != 2:
        raise ValueError(f"other_values 'foreground' needs two classes, got label_values {list(label_values)}.")
