"""Step "label map -> file": integers on exactly the scan's grid, whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.utils import optional_import

from .files import replace
from .grids import ending

__all__ = ["ending_like", "write_label_map"]

itk, _ = optional_import("itk")
pil_image, _ = optional_import("PIL.Image")

_NIFTI = (".nii", ".nii.gz")
_ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
_EXACT_PICTURES = (".png", ".tif", ".tiff", ".bmp")
# what keeps a label map of a scan of this format in one file, without loss
_LIKE = {".nii": ".nii", ".nii.gz": ".nii.gz", ".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd", ".nhdr": ".nrrd"}
_LIKE |= {".npy": ".npy", ".png": ".png", ".tif": ".tif", ".tiff": ".tiff"}


def ending_like(scan_path: str, otherwise: str) -> str:
    """The ending of a label map in the format of its scan, where that holds label maps; DICOM and JPEG do not.

    Args:
        scan_path: file of the scan.
        otherwise: ending where its format does not serve.
    """
    return _LIKE.get(ending(scan_path), otherwise)


def write_label_map(path: str | Path, labels: np.ndarray, affine: np.ndarray, scan_path: str | None = None) -> None:
    """Write a label map beside its name and rename it.

    A NIfTI label map of a NIfTI scan keeps both transforms of the scan's header; an MHA or NRRD label map of an ITK
    scan its origin, spacing and direction to the last bit. Between the two families the affine is carried over, in
    NIfTI's single precision.

    Args:
        path: ending in one of NIfTI's, .mha, .nrrd, .npy, .png, .tif, .tiff, .bmp.
        labels: integers, axes x, y, z, or width, height of a picture.
        affine: from indices to RAS+ coordinates.
        scan_path: the scan, whose header is kept where the format has the same.

    Raises:
        ValueError: when no writer knows the ending, or a picture cannot hold the values.
    """
    path = Path(path)
    kind = ending(path)
    if kind in _NIFTI:
        image: Any = _nifti(labels, affine, scan_path)
        replace(path, lambda beside: _write_named(beside, kind, lambda to: nibabel.save(image, to)))
    elif kind in (".mha", ".nrrd"):
        image = _itk(labels, affine, scan_path)
        replace(
            path, lambda beside: _write_named(beside, kind, lambda to: itk.imwrite(image, str(to), compression=True))
        )
    elif kind == ".npy":
        replace(path, lambda beside: _write_named(beside, kind, lambda to: np.save(to, labels)))
    elif kind in _EXACT_PICTURES and labels.ndim == 2:
        if labels.max(initial=0) > 255:
            raise ValueError(f"{path} cannot hold label values above 255; set output_ext to .npy.")
        picture = pil_image.fromarray(np.ascontiguousarray(labels.T.astype(np.uint8)))
        replace(path, lambda beside: _write_named(beside, kind, lambda to: picture.save(to)))
    else:
        raise ValueError(
            f"a label map of {labels.ndim} axes cannot be written as {path.name!r}: set output_ext to one of "
            f"{', '.join((*_NIFTI, '.mha', '.nrrd', '.npy'))}" + (", .png." if labels.ndim == 2 else ".")
        )


def _write_named(beside: Path, kind: str, write: Any) -> None:
    """Libraries tell formats by the ending, which the name beside the file has not."""
    named = beside.with_name(f"{beside.name}{kind}")
    try:
        write(named)
        if not named.is_file():  # ITK says nothing about some full disks
            raise OSError(f"{named} could not be written.")
        os.replace(named, beside)
    except BaseException:
        named.unlink(missing_ok=True)
        raise


def _nifti(labels: np.ndarray, affine: np.ndarray, scan_path: str | None) -> nibabel.Nifti1Image:
    full = np.eye(4)
    dims = len(affine) - 1
    full[:dims, :dims], full[:dims, 3] = affine[:dims, :dims], affine[:dims, dims]
    if scan_path is None or ending(scan_path) not in _NIFTI:
        image = nibabel.Nifti1Image(labels, full)
        image.set_sform(full, code=1)
        image.set_qform(full, code=1, strip_shears=True)
        image.header.set_xyzt_units("mm")
        return image
    scan: Any = nibabel.load(scan_path)
    # both transforms and their codes, hence whichever a program prefers, are those of the scan
    image = nibabel.Nifti1Image(labels, scan.affine)
    for name in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"):
        image.header[name] = scan.header[name]
    for name in ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
        image.header[name] = scan.header[name]
    pixdim = scan.header["pixdim"].copy()
    pixdim[labels.ndim + 1 :] = 1
    image.header["pixdim"] = pixdim
    return image


def _itk(labels: np.ndarray, affine: np.ndarray, scan_path: str | None) -> Any:
    # ITK counts the axes from the last to the first
    image = itk.image_from_array(np.ascontiguousarray(labels.T))
    dims = labels.ndim
    if scan_path is not None and ending(scan_path) in _ITK:
        reader = itk.ImageIOFactory.CreateImageIO(scan_path, itk.CommonEnums.IOFileMode_ReadMode)
        reader.SetFileName(scan_path)
        reader.ReadImageInformation()
        if reader.GetNumberOfDimensions() == dims:
            image.SetOrigin([reader.GetOrigin(axis) for axis in range(dims)])
            image.SetSpacing([reader.GetSpacing(axis) for axis in range(dims)])
            direction = np.stack([np.asarray(reader.GetDirection(axis)) for axis in range(dims)], axis=1)
            image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(direction)))
            return image
    lps = np.array(affine, float)
    lps[:2] *= -1
    edges = np.linalg.norm(lps[:dims, :dims], axis=0)
    image.SetOrigin(lps[:dims, dims].tolist())
    image.SetSpacing(edges.tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:dims, :dims] / edges)))
    return image
