"""Whole scan -> random patch: the first random step of a training pipeline, a MONAI coat over patches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import TransformBackends, ensure_tuple_rep

from .patches import cut_patch, draw_matrix, draw_start, rotation_limits

__all__ = ["RandPatchD", "RandPatchDict", "RandPatchd"]

_MODES = ("bilinear", "nearest")


class RandPatchd(Randomizable, MapTransform):
    """Cut a random patch of one size out of each scan, some of them turned and scaled.

    It is the first random step of a pipeline: what stands before it can be cached, and each scan is read only where
    the patch lies, which is what makes a memory-mapped cache fast. The patches are copies; the scan stays as it is.
    The skeleton comes later, see :py:class:`monai_skelrec.TubedSkeletond`.

    MONAI has the steps, but not together. Its crops stay inside the scan, so that a larger crop to turn in leaves
    voxels near the border out; its affine transforms scale each axis alone, and interpolate in double precision every
    patch of which they cut a part, turned or not.

    Args:
        keys: images and labels that share a grid.
        patch_size: voxels.
        indices_key: where ``ClassesToIndicesd`` left the indices of each class; taken out of the sample, for they
            belong to the whole scan. None: no patch is centred on foreground.
        foreground_share: of the patches, those centred on a class that is drawn among those present in the scan.
            nnU-Net takes a third, rounded to whole patches of a batch: every second one at batch size 2.
        rotate_prob: share of the patches that are turned, see :py:func:`rotation_limits`.
        scale_prob: share of the patches that are scaled.
        scale_range: of the factor; above 1 the patch shows more of the scan, smaller.
        max_angle: degrees; None for nnU-Net's rule.
        mode: interpolation for each of ``keys``, "bilinear" or "nearest".
        allow_missing_keys: leave out keys that a sample does not have.

    Attributes:
        wanted: class that the next patches are centred on, instead of one that is drawn; None, as at first, draws.

    Raises:
        ValueError: when a mode is unknown, a share or probability is not within 0 and 1, or the scale range is not
            positive and ascending.

    Example:
        >>> scan = {"image": torch.ones(1, 9, 9, 3), "label": torch.ones(1, 9, 9, 3)}
        >>> patch = RandPatchd(["image", "label"], patch_size=[4, 4, 4])(scan)
        >>> tuple(patch["image"].shape), float(patch["label"].sum())
        ((1, 4, 4, 4), 48.0)
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        patch_size: Sequence[int],
        indices_key: str | None = None,
        foreground_share: float = 0.5,
        rotate_prob: float = 0.0,
        scale_prob: float = 0.0,
        scale_range: Sequence[float] = (0.7, 1.4),
        max_angle: float | None = None,
        mode: Sequence[str] | str = _MODES,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        for name, share in (
            ("foreground_share", foreground_share),
            ("rotate_prob", rotate_prob),
            ("scale_prob", scale_prob),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be within 0 and 1, got {share}.")
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        if not set(self.mode) <= set(_MODES):
            raise ValueError(f"mode must be 'bilinear' or 'nearest' for each key, got {mode}.")
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range must be two factors above 0, the smaller first, got {scale_range}.")
        limit, self.axes = rotation_limits(patch_size)
        self.patch_size = tuple(patch_size)
        self.indices_key = indices_key
        self.foreground_share = foreground_share
        self.rotate_prob = rotate_prob
        self.scale_prob = scale_prob
        self.scale_range = (float(scale_range[0]), float(scale_range[1]))
        self.max_angle = limit if max_angle is None else max_angle
        self.wanted: int | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: volumes (C, H, W[, D]) of one grid, and the indices.

        Returns:
            Patches (C, *patch_size); MetaTensors carry the affine that says where the patch lies.

        Raises:
            ValueError: when the indices are missing, a volume has other axes than the patch, or the grids differ.
        """
        d = dict(data)
        keys, modes = zip(*self.key_iterator(d, self.mode))
        volumes = [d[key] for key in keys]
        shape = tuple(volumes[0].shape[1:])
        if len(shape) != len(self.patch_size) or any(tuple(volume.shape[1:]) != shape for volume in volumes):
            raise ValueError(
                f"{', '.join(map(str, keys))} must share a grid of {len(self.patch_size)} axes (patch_size "
                f"{list(self.patch_size)}), got shapes {', '.join(str(tuple(volume.shape)) for volume in volumes)}."
            )
        indices: Sequence[Any] = ()
        if self.indices_key is not None:
            if self.indices_key not in d:
                raise ValueError(f"the sample has no {self.indices_key!r}; put ClassesToIndicesd before RandPatchd.")
            indices = d.pop(self.indices_key)
        start, matrix = self._draw(shape, indices)
        plain = [torch.as_tensor(v.as_tensor() if isinstance(v, MetaTensor) else v) for v in volumes]
        for key, volume, patch in zip(keys, volumes, cut_patch(plain, modes, start, self.patch_size, matrix)):
            d[key] = _with_meta(patch, volume, start, matrix)
        return d

    def _draw(self, shape: Sequence[int], indices: Sequence[Any]) -> tuple[np.ndarray, np.ndarray | None]:
        start = draw_start(self.R, shape, self.patch_size, indices, self.foreground_share, self.wanted)
        rotate, scale = self.R.random_sample() < self.rotate_prob, self.R.random_sample() < self.scale_prob
        if not rotate and not scale:
            return start, None
        return start, draw_matrix(
            self.R,
            len(shape),
            self.axes,
            max_angle=self.max_angle,
            scale_range=self.scale_range,
            rotate=rotate,
            scale=scale,
        )


def _with_meta(patch: torch.Tensor, volume: Any, start: np.ndarray, matrix: np.ndarray | None) -> torch.Tensor:
    """The patch with its place in space, where the volume had one."""
    if not isinstance(volume, MetaTensor):
        return patch
    half = (np.asarray(patch.shape[1:]) - 1) / 2
    linear = np.eye(len(half)) if matrix is None else matrix
    step = np.eye(len(volume.affine))
    step[: len(half), : len(half)] = linear
    step[: len(half), -1] = start + half - linear @ half
    meta = {key: value for key, value in volume.meta.items() if key != "affine"}
    return MetaTensor(patch, affine=volume.affine @ torch.as_tensor(step, dtype=volume.affine.dtype), meta=meta)


RandPatchD = RandPatchDict = RandPatchd
