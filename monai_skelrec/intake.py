"""File -> checked scan, label map of class indices: the first steps of a pipeline that MONAI lacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy

from .label_maps import check_other_values, to_class_indices

__all__ = [
    "CheckScan",
    "CheckScanD",
    "CheckScanDict",
    "CheckScand",
    "MapLabelValues",
    "MapLabelValuesD",
    "MapLabelValuesDict",
    "MapLabelValuesd",
    "to_numpy",
]


class MapLabelValues(Transform):
    """Turn label values as they are on disk into class indices: the value ``label_values[c]`` becomes ``c``.

    All values are replaced at once, so that [0, 3, 4] -> [0, 1, 2] leaves no old 1 or 2 behind, as MONAI's
    ``MapLabelValue`` does.

    Args:
        label_values: the values on disk, background first, each once.
        other_values: "error", or "background" to turn all other values into 0, or "foreground" to turn them into 1, the
            only class, or "nearest" to take the nearest listed value (masks of 0 and 255 with grey borders).

    Raises:
        ValueError: when an argument is none of the above.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(self, label_values: Sequence[int], other_values: str = "error") -> None:
        values = [int(value) for value in label_values]
        if not values or len(set(values)) < len(values) or values != list(label_values):
            raise ValueError(f"label_values must be whole numbers, each once, background first, got {label_values}.")
        check_other_values(other_values, values)
        self.label_values = values
        self.other_values = other_values

    def __call__(self, label: NdarrayOrTensor) -> NdarrayOrTensor:
        """
        Args:
            label: any shape, integers or floats of integer value.

        Returns:
            Class indices in the container, shape, dtype, device and metadata of ``label``.

        Raises:
            ValueError: when ``label`` holds a value that is no whole number, or one that ``label_values`` does not
                list and ``other_values`` is "error".
        """
        array = to_numpy(label)
        broken = array[~(np.isfinite(array) & (np.rint(array) == array))] if array.dtype.kind == "f" else array[:0]
        if broken.size:
            raise ValueError(f"The label{_file_of(label)} must hold whole numbers, got {broken[0]}.")
        try:
            index = to_class_indices(array, self.label_values, self.other_values)
        except ValueError as error:
            raise ValueError(f"The label{_file_of(label)} does not fit: {error}") from None
        return convert_to_dst_type(index, label)[0]


class MapLabelValuesd(MapTransform):
    """Dictionary-based wrapper of :py:class:`MapLabelValues`; put it right after the label is read.

    Args:
        keys: labels.
        label_values: see :py:class:`MapLabelValues`.
        other_values: see :py:class:`MapLabelValues`.
        allow_missing_keys: leave out keys that a sample does not have.
    """

    backend = MapLabelValues.backend

    def __init__(
        self,
        keys: KeysCollection,
        label_values: Sequence[int],
        other_values: str = "error",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = MapLabelValues(label_values, other_values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.transform(d[key])
        return d


class CheckScan(Transform):
    """Stop at a scan that no network can read, and name its file; any other passes unchanged.

    Args:
        spatial_dims: axes there must be after the channel; None takes any.
        channels: channels there must be; None takes any.
    """

    backend = [TransformBackends.NUMPY, TransformBackends.TORCH]

    def __init__(self, spatial_dims: int | None = None, channels: int | None = None) -> None:
        self.spatial_dims = spatial_dims
        self.channels = channels

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """
        Args:
            image: (C, H, W[, D]).

        Returns:
            ``image`` itself.

        Raises:
            ValueError: when it has no voxel, another number of axes or channels, or a value that is not finite.
        """
        shape = tuple(image.shape)
        if 0 in shape:
            raise ValueError(f"The scan{_file_of(image)} has no voxels, its shape is {shape}.")
        if self.spatial_dims is not None and len(shape) != self.spatial_dims + 1:
            raise ValueError(
                f"The scan{_file_of(image)} must have {self.spatial_dims} spatial axes after its channel, "
                f"got shape {shape}."
            )
        if self.channels is not None and shape[0] != self.channels:
            raise ValueError(f"The scan{_file_of(image)} must have {self.channels} channel(s), got shape {shape}.")
        finite = torch.isfinite(image) if isinstance(image, torch.Tensor) else np.isfinite(image)
        if not bool(finite.all()):
            count = int((~finite).sum())
            raise ValueError(f"The scan{_file_of(image)} has {count} values that are NaN or infinite; repair the file.")
        return image


class CheckScand(MapTransform):
    """Dictionary-based wrapper of :py:class:`CheckScan`; put it after ``EnsureChannelFirstd``.

    Args:
        keys: scans.
        spatial_dims: see :py:class:`CheckScan`.
        channels: see :py:class:`CheckScan`.
        allow_missing_keys: leave out keys that a sample does not have.
    """

    backend = CheckScan.backend

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int | None = None,
        channels: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CheckScan(spatial_dims, channels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.transform(d[key])
        return d


def to_numpy(label: NdarrayOrTensor) -> np.ndarray:
    """View a label of any container and dtype as a NumPy array."""
    # NumPy has no bfloat16
    wide = label.float() if isinstance(label, torch.Tensor) and label.dtype == torch.bfloat16 else label
    return np.asarray(convert_to_numpy(wide))


def _file_of(data: NdarrayOrTensor) -> str:
    name = data.meta.get("filename_or_obj") if isinstance(data, MetaTensor) else None
    return f" {name}" if name else ""


MapLabelValuesD = MapLabelValuesDict = MapLabelValuesd
CheckScanD = CheckScanDict = CheckScand
