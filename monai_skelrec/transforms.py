"""Label in a pipeline -> its tubed skeleton: a MONAI coat over skeletons; also lists the package's other transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform, Transform
from monai.transforms.traits import LazyTrait, RandomizableTrait
from monai.utils import TransformBackends, convert_to_dst_type, ensure_tuple_rep

from .intake import (
    CheckScan,
    CheckScanD,
    CheckScand,
    CheckScanDict,
    MapLabelValues,
    MapLabelValuesD,
    MapLabelValuesd,
    MapLabelValuesDict,
    to_numpy,
)
from .sampling import RandPatchd
from .skeletons import tubed_skeleton

__all__ = [
    "CheckScan",
    "CheckScanD",
    "CheckScanDict",
    "CheckScand",
    "MapLabelValues",
    "MapLabelValuesD",
    "MapLabelValuesDict",
    "MapLabelValuesd",
    "TubedSkeleton",
    "TubedSkeletonD",
    "TubedSkeletonDict",
    "TubedSkeletond",
    "check_order",
]


class TubedSkeleton(Transform):
    """Turn a label map into its tubed skeleton, the target of skeleton recall.

    One channel is read as class indices. Of several channels (one-hot, or overlapping regions) each holds 0 and 1 and
    is thinned alone; leave a background channel out, its skeleton costs much and is good for nothing.

    From: Kirchhoff et al., "Skeleton Recall Loss for Connectivity Conserving and Resource Efficient Segmentation of
    Thin Tubular Structures", ECCV 2024, https://arxiv.org/abs/2404.03010

    Args:
        radius: see :py:func:`monai_skelrec.skeletons.tubed_skeleton`, as all that follow.
        groups: for one channel only.
        ignore_index: with several channels, a voxel is ignored where any of them holds this value.
        spacing: one value an axis, or "meta": the voxel size that a MetaTensor's affine holds.
        restore_lost: give what thinning deletes a tube of its own.

    Raises:
        ValueError: when an argument is none of the above.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(
        self,
        radius: float = 2,
        *,
        groups: str | Sequence[Sequence[int]] | None = None,
        ignore_index: int | None = None,
        spacing: str | Sequence[float] | None = None,
        restore_lost: bool = True,
    ) -> None:
        if isinstance(spacing, str) and spacing != "meta":
            raise ValueError(f'spacing must be None, "meta" or one value an axis, got "{spacing}".')
        self.radius = radius
        self.groups = groups
        self.ignore_index = ignore_index
        self.spacing = spacing
        self.restore_lost = restore_lost
        # wrong arguments are reported here and not by a worker's first sample
        fixed = (1.0, 1.0) if isinstance(spacing, str) else spacing
        self._tube(np.zeros((1,) * (2 if fixed is None else len(fixed)), np.uint8), fixed)

    def __call__(self, label: NdarrayOrTensor) -> NdarrayOrTensor:
        """
        Args:
            label: (C, H, W[, D]), integers or floats of integer value.

        Returns:
            Tubed skeleton of the container, shape, dtype, device, affine and metadata of ``label``.

        Raises:
            ValueError: when ``label`` has another number of dimensions or other values, ``groups`` was given and there
                are several channels, or ``spacing`` is "meta" and ``label`` has no affine.
        """
        if label.ndim not in (3, 4):
            raise ValueError(
                f"TubedSkeleton needs a channel and 2 or 3 axes, (C, H, W[, D]), got shape {tuple(label.shape)}."
            )
        spacing = self.spacing
        if isinstance(spacing, str):
            if not isinstance(label, MetaTensor):
                raise ValueError(
                    'spacing="meta" needs a MetaTensor, whose affine holds the voxel size; give the numbers.'
                )
            spacing = label.pixdim[: label.ndim - 1].tolist()
        array = to_numpy(label)
        if len(array) == 1:
            return convert_to_dst_type(self._tube(array[0], spacing)[np.newaxis], label)[0]
        if self.groups is not None:
            raise ValueError(
                f"groups is for one channel of class indices, got {len(array)} channels, thinned one by one."
            )
        if self.ignore_index is not None:
            array = np.where((array == self.ignore_index).any(axis=0), 0, array)
        if not ((array == 0) | (array == 1)).all():
            raise ValueError(
                f"TubedSkeleton needs 0 and 1 in each of several channels, got other values in shape {array.shape}; "
                "class indices go in one channel."
            )
        return convert_to_dst_type(np.stack([self._tube(channel, spacing) for channel in array]), label)[0]

    def _tube(self, label: np.ndarray, spacing: Sequence[float] | None) -> np.ndarray:
        return tubed_skeleton(
            label,
            self.radius,
            groups=self.groups,
            ignore_index=self.ignore_index,
            spacing=spacing,
            restore_lost=self.restore_lost,
        )


class TubedSkeletond(MapTransform):
    """Dictionary-based wrapper of :py:class:`TubedSkeleton`; the labels stay as they are.

    It must stand after every random spatial transform and every crop, on the patch the network sees: a line one voxel
    wide does not survive interpolation, the skeleton of a mirrored label is not the mirrored skeleton, and that of a
    crop not the cropped one. It draws nothing at random, so before the first random transform a ``CacheDataset`` would
    even store it. :py:func:`check_order` finds a pipeline that gets this wrong.

    A lazy ``Compose`` applies what is pending before this transform, but MONAI 1.6 then interpolates a label linearly,
    whatever ``mode`` its transforms have; give it ``overrides={"label": {"mode": "nearest"}}``.

    Args:
        keys: labels to thin.
        skeleton_keys: where the tubed skeletons go, one for each of ``keys``.
        radius: see :py:class:`TubedSkeleton`, as all that follow but the last.
        allow_missing_keys: leave out keys that a sample does not have.

    Raises:
        ValueError: when ``skeleton_keys`` does not give each of ``keys`` a name of its own, or as
            :py:class:`TubedSkeleton`.
    """

    backend = TubedSkeleton.backend

    def __init__(
        self,
        keys: KeysCollection,
        skeleton_keys: KeysCollection = "skeleton",
        radius: float = 2,
        *,
        groups: str | Sequence[Sequence[int]] | None = None,
        ignore_index: int | None = None,
        spacing: str | Sequence[float] | None = None,
        restore_lost: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.skeleton_keys = ensure_tuple_rep(skeleton_keys, len(self.keys))
        if len(set(self.skeleton_keys)) < len(self.keys):
            raise ValueError(f"skeleton_keys must name one key for each of {self.keys}, got {skeleton_keys}.")
        self.transform = TubedSkeleton(
            radius, groups=groups, ignore_index=ignore_index, spacing=spacing, restore_lost=restore_lost
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, skeleton_key in self.key_iterator(d, self.skeleton_keys):
            d[skeleton_key] = self.transform(data[key])
        return d


def check_order(transform: Any) -> None:
    """Find a random spatial transform that stands after the tubed skeleton was made.

    No transform can see what follows it, so this looks at the pipeline itself: a ``Compose``, nested as it may be. It
    sees MONAI's own random spatial, crop and deformation transforms and what is derived from them; not what a Lambda
    does, nor what is applied outside the pipeline. Dictionary transforms count when they change the label or its
    skeleton.

    Args:
        transform: the pipeline.

    Raises:
        ValueError: when there is one; the sentence names it.
    """
    changed: set[Hashable] | None = None
    for one in _flat(transform):
        if isinstance(one, TubedSkeletond):
            changed = (changed or set()) | {*one.keys, *one.skeleton_keys}
        elif isinstance(one, TubedSkeleton):
            changed = changed or set()
        elif changed is not None and _is_random_spatial(one):
            if not isinstance(one, MapTransform) or changed & set(one.keys):
                raise ValueError(
                    f"{type(one).__name__} stands after the tubed skeleton, which does not survive it; "
                    "put TubedSkeletond after every random spatial transform and crop."
                )


def _flat(transform: Any) -> list[Any]:
    if isinstance(transform, Compose):
        return [one for inner in transform.transforms for one in _flat(inner)]
    return [transform]


def _is_random_spatial(transform: Any) -> bool:
    # MONAI marks as lazy exactly what changes the grid; deformations are not lazy and known by their module
    modules = {kind.__module__ for kind in type(transform).__mro__}
    spatial = any(f"monai.transforms.{name}." in module for module in modules for name in ("spatial", "smooth_field"))
    moves = isinstance(transform, (LazyTrait, RandPatchd)) or spatial
    return isinstance(transform, RandomizableTrait) and moves


TubedSkeletonD = TubedSkeletonDict = TubedSkeletond
