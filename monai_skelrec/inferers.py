"""Step "image -> logits": windows seen in their mirror images as well, and in lower precision on a CPU too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer

from .sides import SIDE_AXIS, pair_indices

__all__ = ["AutocastInferer", "MirroringInferer", "autocast_on_cpu", "axes_to_mirror", "mirror_images", "mirrored"]


def mirror_images(mirror_axes: Sequence[int], spatial_dims: int) -> list[tuple[int, ...]]:
    """Every set of axes along which a batch is flipped, the empty one first; 2 to the power of the number of axes.

    Args:
        mirror_axes: spatial axes, 0 for the first after the channel.
        spatial_dims: of the batch.

    Returns:
        Axes of a BCH[WD] tensor.

    Raises:
        ValueError: when an axis is none of the batch's, or stands there twice.

    Example:
        >>> mirror_images([0, 1], spatial_dims=2)
        [(), (2,), (3,), (2, 3)]
    """
    axes = [int(axis) for axis in mirror_axes]
    if len(set(axes)) < len(axes) or not set(axes) <= set(range(spatial_dims)):
        raise ValueError(f"mirror_axes must be axes 0 to {spatial_dims - 1}, each once, got {list(mirror_axes)}.")
    shifted = [axis + 2 for axis in axes]
    return list(chain.from_iterable(combinations(shifted, number) for number in range(len(axes) + 1)))


def axes_to_mirror(mirror: bool, mirror_axes: Sequence[int]) -> list[int]:
    """The axes of a task, when mirror images are wanted.

    Args:
        mirror: whether they are.
        mirror_axes: of the task.

    Returns:
        ``mirror_axes``, or none of them.

    Raises:
        ValueError: when mirror images are wanted of a task that has no such axes.
    """
    if mirror and not mirror_axes:
        raise ValueError(
            "mirror is the mean over mirror images along mirror_axes, and this task has none: its network has seen no "
            "mirror image. Leave mirror out, or train with --mirror_axes first."
        )
    return list(mirror_axes) if mirror else []


def mirrored(
    network: Callable[..., torch.Tensor], mirror_axes: Sequence[int], pairs: Mapping[int, int] | None = None
) -> Callable[..., torch.Tensor]:
    r"""Test-time augmentation by flips: the mean of a network's logits over all mirror images.

    .. math::
        \frac{1}{|F|} \sum_{f \in F} f^{-1}(\mathrm{network}(f(x)))

    with F all combinations of flips along ``mirror_axes``. The mean is of logits, as nnU-Net's is, so that overlapping
    windows, mirror images and resampling all average the same quantity. What a network calls left in a head that was
    flipped from side to side is right: the logits of such classes are exchanged.

    Args:
        network: BCH[WD] -> BNH[WD].
        mirror_axes: spatial axes, 0 for the first, which runs from side to side; empty: ``network`` itself.
        pairs: classes that change places along axis 0, see :py:func:`monai_skelrec.sides.pair_indices`; None: none.

    Returns:
        Takes and returns what ``network`` does.
    """
    if not mirror_axes:
        return network
    partners = dict(pairs or {})

    def predict(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        flips = mirror_images(mirror_axes, windows.ndim - 2)
        total = network(windows, *args, **kwargs).clone()
        for axes in flips[1:]:
            found = network(windows.flip(axes), *args, **kwargs).flip(axes)
            if partners and SIDE_AXIS + 2 in axes:
                found = found[:, [partners.get(index, index) for index in range(found.shape[1])]]
            total += found
        return total / len(flips)

    return predict


class MirroringInferer(SlidingWindowInferer):
    """MONAI's SlidingWindowInferer over :py:func:`mirrored` windows.

    Args:
        mirror_axes: spatial axes, 0 for the first after the channel; the time grows by 2 to the power of their number.
        class_names: of the channels, background first.
        mirror_pairs: names of classes that change places along axis 0.
        args: as SlidingWindowInferer.
        kwargs: as SlidingWindowInferer.
    """

    def __init__(
        self,
        *args: Any,
        mirror_axes: Sequence[int] = (),
        class_names: Sequence[str] = (),
        mirror_pairs: Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mirror_axes = tuple(mirror_axes)
        self.pairs = pair_indices(class_names, mirror_pairs, self.mirror_axes)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs: image, shape BCH[WD].
            network: BCH[WD] -> BNH[WD].
            args: handed to the network.
            kwargs: handed to the network.

        Returns:
            Logits, shape BNH[WD].
        """
        return super().__call__(inputs, mirrored(network, self.mirror_axes, self.pairs), *args, **kwargs)


def autocast_on_cpu(network: Callable[..., Any]) -> Callable[..., Any]:
    """Run a network in bfloat16 where its input lies on a CPU; elsewhere MONAI's engines see to it.

    A CPU that computes in bfloat16 itself (AVX-512 BF16, AMX) trains about twice as fast; another is slower for it.

    Args:
        network: BCH[WD] -> a tensor, or a list of the tensors of training heads.

    Returns:
        Takes what ``network`` does; on a CPU the tensors it returns are float32.
    """

    def predict(windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if windows.device.type != "cpu":
            return network(windows, *args, **kwargs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(windows, *args, **kwargs)
        return [head.float() for head in found] if isinstance(found, (list, tuple)) else found.float()

    return predict


class AutocastInferer(Inferer):
    """Another inferer whose network runs in mixed precision on a CPU too, which ``amp`` of MONAI's engines leaves out.

    Args:
        inferer: MONAI's SimpleInferer, SlidingWindowInferer, ...
        amp: False: ``inferer`` as it is.
    """

    def __init__(self, inferer: Inferer, amp: bool = True) -> None:
        super().__init__()
        self.inferer = inferer
        self.amp = amp

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs: image, shape BCH[WD].
            network: see :py:func:`autocast_on_cpu`.
            args: handed to the network.
            kwargs: handed to the network.
        """
        return self.inferer(inputs, autocast_on_cpu(network) if self.amp else network, *args, **kwargs)
