"""Step "file on disk -> label map" for CrackForest, whose masks are MATLAB files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import PILReader
from monai.utils import ensure_tuple, optional_import
from scipy.io import loadmat

__all__ = ["CrackMaskReader", "read_crack_mask"]

pil_image, _ = optional_import("PIL.Image")

_CRACK = 2  # 1 is pavement; 3 and 4 are stains and the like


def read_crack_mask(path: str | Path) -> np.ndarray:
    """Read a mask of CrackForest: ``groundTruth.Segmentation == 2``.

    Args:
        path: MATLAB file.

    Returns:
        255 on the crack, 0 elsewhere; uint8, shape (H, W).

    Raises:
        ValueError: when the file holds no such field.

    Reference:
        Shi et al. "Automatic Road Crack Detection Using Random Structured Forests." IEEE T-ITS 2016.
    """
    content = loadmat(str(path))
    try:
        segmentation = content["groundTruth"]["Segmentation"][0, 0]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} must hold groundTruth.Segmentation, as CrackForest's files do.") from error
    return np.where(np.asarray(segmentation) == _CRACK, 255, 0).astype(np.uint8)


class CrackMaskReader(PILReader):
    """Read pictures, and CrackForest's MATLAB files as if they were pictures of 0 and 255.

    Arguments are those of MONAI's ``PILReader``.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Any suffix: the layout has chosen the files."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike | np.ndarray, **kwargs: Any) -> Any:
        """
        Args:
            data: a path, or several: of pictures, or one of a MATLAB file.
            kwargs: of ``PIL.Image.open``.

        Returns:
            The picture.
        """
        paths = ensure_tuple(data)
        if len(paths) == 1 and str(paths[0]).lower().endswith(".mat"):
            return pil_image.fromarray(read_crack_mask(paths[0]))
        return super().read(data, **kwargs)
