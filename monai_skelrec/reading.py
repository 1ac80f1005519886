"""Step "scan's file -> checked array": read through MONAI's readers, with what is suspicious about it in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import ITKReader, MetaTensor, NibabelReader, NumpyReader, PILReader
from monai.data.utils import to_affine_nd
from monai.transforms import Compose, LoadImage, ScaleIntensityRanged
from monai.utils import optional_import

from .grids import PICTURES, ending, reason_of
from .intake import CheckScan
from .scans import Scan, series_files

__all__ = ["Loaded", "UnusableScan", "intensity_window", "read_scan"]

itk, _ = optional_import("itk")
pil_image, _ = optional_import("PIL.Image")

# share of the voxels beyond the task's window, and share of the window that a scan covers, that are no usual scan's
_BEYOND, _COVERED = 0.5, 0.1
# fewer different values than any scan has: label maps reach some forty classes
_DISTINCT = 50
# how near to 0 and 1 mean and deviation of a normalised scan are
_NORMALISED = 0.1
# ratio of a scan's voxel size and the task's that suggests another unit
_SPACING = 5.0
# a gap between slices of this share of their distance is worth a warning
_GAP = 0.01


class UnusableScan(ValueError):
    """A scan that no second try would read: what is wrong is in its file."""


class Loaded(NamedTuple):
    """A scan as stored.

    Attributes:
        image: float32, shape CH[WD], axes as MONAI's readers give them (x, y, z; width, height).
        affine: from indices to RAS+ coordinates in mm, shape (D + 1, D + 1); that of a picture is the identity.
        warnings: sentences.
    """

    image: torch.Tensor
    affine: np.ndarray
    warnings: list[str]


def read_scan(
    scan: Scan,
    *,
    spatial_dims: int = 3,
    channels: int = 1,
    reader: Any = None,
    voxel_size: Sequence[float] | None = None,
    spacing: Sequence[float] | None = None,
    window: tuple[float, float] | None = None,
    raw: bool = False,
) -> Loaded:
    """Read a scan of any format and refuse what no network can segment.

    Args:
        scan: see :py:func:`monai_skelrec.scans.find_scans`.
        spatial_dims: 2 or 3.
        channels: that the network takes.
        reader: MONAI reader of the task's own formats; None: MONAI chooses.
        voxel_size: mm, of NumPy files; None: 1.
        spacing: of the network's grid in mm; a scan with voxels very much larger or smaller gets a warning.
        window: intensities that the task expects, see :py:func:`intensity_window`; a scan that lies mostly outside, or
            fills a small part of it, gets a warning.
        raw: whether the task takes volumes as scanners store them, of whatever range (CTA and MRA); one that was
            scaled to 1 or to 8 bits, normalised, or holds few values, gets a warning.

    Raises:
        UnusableScan: when the file cannot be read, is no scan of this shape, or holds no image: not finite, constant,
            empty, voxels without size.
    """
    if scan.problem:
        raise UnusableScan(f"{scan.path}: {scan.problem}.")
    _refuse_picture(scan.path)
    try:
        data = LoadImage()(scan.path, reader=_reader(scan, reader))
        notes = _uneven_slices(scan)
    except MemoryError:
        raise
    # each library has its own exceptions for a damaged file; all of them mean the same to the user
    except Exception as error:
        raise UnusableScan(f"{scan.path} cannot be read: {reason_of(error)}.") from error
    is_numpy = ending(scan.path) == ".npy"
    image = _channel_first(data, spatial_dims, channels, is_numpy)
    if image.ndim != spatial_dims + 1:
        raise UnusableScan(f"{scan.path} must have {spatial_dims} axes (and channels), got shape {tuple(data.shape)}.")
    try:
        CheckScan(spatial_dims, channels)(MetaTensor(image, meta={"filename_or_obj": scan.path}))
    except ValueError as error:
        raise UnusableScan(str(error)) from None
    low, high = float(image.min()), float(image.max())
    if low == high:
        raise UnusableScan(f"{scan.path} is constant: every voxel is {low:g}.")
    affine = np.eye(spatial_dims + 1) if spatial_dims == 2 else to_affine_nd(3, np.asarray(data.affine, float))
    if is_numpy:
        affine = np.diag([*(voxel_size or [1.0] * spatial_dims), 1.0])
        if voxel_size is None and spatial_dims == 3:
            notes.append("a NumPy file states no voxel size; 1 mm was taken, set voxel_size")
    edges = np.linalg.norm(affine[:-1, :-1], axis=0)
    if not np.isfinite(affine).all() or edges.min() <= 0 or abs(np.linalg.det(affine[:-1, :-1] / edges)) < 1e-3:
        raise UnusableScan(f"{scan.path} states impossible voxels, with edges of {edges.round(6).tolist()} mm.")
    notes += _suspicions(image, edges, spacing, window)
    if raw and spatial_dims == 3:
        notes += _processed(image, low, high)
    return Loaded(image, affine, notes)


def intensity_window(intensity: Any) -> tuple[float, float] | None:
    """The intensities that a task clips to, which are those of its modality; None where it clips none.

    Args:
        intensity: MONAI's ``ScaleIntensityRanged``, or a ``Compose`` that may have one.
    """
    if isinstance(intensity, Compose):
        return next((found for found in map(intensity_window, intensity.transforms) if found), None)
    if isinstance(intensity, ScaleIntensityRanged) and intensity.scaler.clip:
        return float(intensity.scaler.a_min), float(intensity.scaler.a_max)
    return None


def _reader(scan: Scan, reader: Any) -> Any:
    """One reader for each format: where MONAI tries several, the last one's complaint hides what is wrong."""
    if scan.series is not None:
        return ITKReader(series_name=scan.series)
    # the task's reader is for the task's formats
    if reader is not None and reader.verify_suffix(scan.path):
        return reader
    kind = ending(scan.path)
    if kind in (".nii", ".nii.gz"):
        return NibabelReader()
    if kind == ".npy":
        return NumpyReader()
    return PILReader() if kind in PICTURES else ITKReader()


def _refuse_picture(path: str) -> None:
    if ending(path) not in PICTURES or not Path(path).is_file():
        return
    try:
        with pil_image.open(path) as picture:
            pages, mode = getattr(picture, "n_frames", 1), picture.mode
    except Exception as error:
        raise UnusableScan(f"{path} cannot be read: {reason_of(error)}.") from error
    if pages > 1:
        raise UnusableScan(f"{path} holds {pages} pictures; give each a file of its own.")
    if mode[0] in "IF":
        raise UnusableScan(f"{path} has more than 8 bits a channel (mode {mode}), which would be cut off.")


def _channel_first(data: MetaTensor, spatial_dims: int, channels: int, is_numpy: bool) -> torch.Tensor:
    """Put channels first, and drop axes of length 1 behind the spatial ones."""
    image = data.as_tensor()
    while image.ndim > spatial_dims + 1 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim == spatial_dims:
        return image[None]
    if image.ndim == spatial_dims + 1:
        # NumPy files hold channels first or last, all others last
        first = is_numpy and image.shape[0] == channels and image.shape[-1] != channels
        image = image if first else image.movedim(-1, 0)
    return image


def _uneven_slices(scan: Scan) -> list[str]:
    """A warning where the slices of a DICOM series are not at equal distances; ITK takes them as if they were."""
    if scan.series is None:
        return []
    positions = []
    for path in series_files(scan.path)[scan.series]:
        header = itk.GDCMImageIO.New(FileName=path)
        header.ReadImageInformation()
        positions.append([header.GetOrigin(axis) for axis in range(3)])
    steps = np.linalg.norm(np.diff(np.array(positions), axis=0), axis=1)
    if len(steps) < 2 or steps.max() - steps.min() <= _GAP * max(np.median(steps), 1e-6):
        return []
    return [
        f"{len(positions)} slices are {steps.min():.4g} to {steps.max():.4g} mm apart: some are missing or doubled, "
        "and what is measured along them is wrong"
    ]


def _suspicions(
    image: torch.Tensor, edges: np.ndarray, spacing: Sequence[float] | None, window: tuple[float, float] | None
) -> list[str]:
    notes = []
    if spacing is not None:
        ratio = edges / np.asarray(spacing, float)[: len(edges)]
        if ratio.max() > _SPACING or ratio.min() < 1 / _SPACING:
            notes.append(
                f"its voxels of {' x '.join(f'{edge:.3g}' for edge in edges)} mm are far from the task's "
                f"{' x '.join(f'{edge:.3g}' for edge in spacing)} mm; is the unit another?"
            )
    if window is not None:
        low, high = window
        sample = _sample(image)
        beyond = float(((sample < low) | (sample > high)).float().mean())
        bottom, top = (float(value) for value in torch.quantile(sample, torch.tensor([0.005, 0.995])))
        covered = (min(top, high) - max(bottom, low)) / (high - low)
        if beyond > _BEYOND or covered < _COVERED:
            notes.append(
                f"its intensities ({bottom:.4g} to {top:.4g}) are not those the task expects ({low:g} to {high:g}): "
                "another modality, or rescaled?"
            )
    return notes


def _processed(image: torch.Tensor, low: float, high: float) -> list[str]:
    """A warning where values cannot be those that a CT or MR scanner stored, whatever its units."""
    sample = _sample(image)
    shown = f"its values ({low:.4g} to {high:.4g}"
    distinct = len(torch.unique(sample))
    if distinct < min(_DISTINCT, len(sample)):
        return [f"{shown}, {distinct} different ones) are few for a scan; a label map or a mask?"]
    if bool((sample == sample.round()).all()):
        if (low, high) == (0, 255):
            return [f"{shown}, whole) are those of 8 bits; windowed? What lay outside the window is lost"]
        return []
    # where the background was left out or set to 0 the others have mean 0
    parts = (sample, sample[sample != 0])
    normal = any(abs(float(part.mean())) < _NORMALISED and abs(float(part.std()) - 1) < _NORMALISED for part in parts)
    if normal or (low >= -1 and high <= 1):
        return [f"{shown}) are no scanner's; normalised or rescaled before? What was clipped then is lost"]
    return []


def _sample(image: torch.Tensor) -> torch.Tensor:
    """About a million voxels."""
    return image.reshape(-1)[:: max(1, image.numel() // 10**6)]
