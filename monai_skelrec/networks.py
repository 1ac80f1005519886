"""Patch -> logits: how deep a U-Net goes, and the heads at lower resolutions that only its training has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DynUNet
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["SupervisedDynUNet", "inference_network", "inference_state_dict", "plan_unet", "training_network"]

_SMALLEST_EDGE = 4  # voxels of the coarsest level on any axis that is halved
_FIRST_FILTERS, _MOST_FILTERS = 32, {2: 512, 3: 320}


def plan_unet(patch_size: Sequence[int], spacing: Sequence[float] | None = None) -> dict[str, list]:
    """Strides, kernels and features of a U-Net for a patch, by the published rules of nnU-Net.

    From level to level, an axis is halved if it has at least 8 voxels left, so that 4 remain, and if its voxels are
    less than twice as long as the shortest of the axes that can be halved; the last such axis only while it has 12. A
    kernel is 1 on an axis whose voxels are at least twice as long as the shortest, until halving has evened them out,
    and 3 elsewhere and at the bottom. Features double from 32 to at most 320, in 2D 512.

    Args:
        patch_size: voxels.
        spacing: length of a voxel on each axis of the patch, in any unit; None: the same on all.

    Returns:
        ``strides``, ``kernel_size``, ``upsample_kernel_size`` and ``filters``, as MONAI's ``DynUNet`` takes them.

    Raises:
        ValueError: when the patch has other than 2 or 3 axes, halves less than twice, or is no multiple of what it
            is halved to; or when the spacing has another length or is not positive.

    Example:
        >>> plan_unet([96, 96, 24], spacing=[1, 1, 3])["strides"]
        [[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 1]]
    """
    dims = len(patch_size)
    if dims not in _MOST_FILTERS:
        raise ValueError(f"patch_size must have 2 or 3 entries, got {list(patch_size)}.")
    lengths = [1.0] * dims if spacing is None else [float(length) for length in spacing]
    if len(lengths) != dims or min(lengths) <= 0:
        raise ValueError(f"spacing must have {dims} positive entries, as patch_size, got {list(spacing or [])}.")
    size, kernel = list(patch_size), [1] * dims
    strides, kernel_size = [[1] * dims], []
    while True:
        shortest = min(lengths)
        kernel = [3 if k == 3 or length < 2 * shortest else 1 for k, length in zip(kernel, lengths)]
        large = [axis for axis in range(dims) if size[axis] >= 2 * _SMALLEST_EDGE]
        shortest = min((lengths[axis] for axis in large), default=0.0)
        halved = [axis for axis in large if lengths[axis] < 2 * shortest]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * _SMALLEST_EDGE):
            break
        kernel_size.append(kernel)
        strides.append([2 if axis in halved else 1 for axis in range(dims)])
        size = [-(-n // step) for n, step in zip(size, strides[-1])]
        lengths = [length * step for length, step in zip(lengths, strides[-1])]
    if len(strides) < 3:
        raise ValueError(f"patch_size {list(patch_size)} is too small for a U-Net of three levels; take 16 or more.")
    steps = [2 ** sum(stride[axis] == 2 for stride in strides) for axis in range(dims)]
    if any(n % step for n, step in zip(patch_size, steps)):
        fits = [-(-n // step) * step for n, step in zip(patch_size, steps)]
        raise ValueError(f"patch_size {list(patch_size)} must be a multiple of {steps}; the next larger is {fits}.")
    return {
        "strides": strides,
        "kernel_size": [*kernel_size, [3] * dims],
        "upsample_kernel_size": strides[1:],
        "filters": [min(_FIRST_FILTERS * 2**level, _MOST_FILTERS[dims]) for level in range(len(strides))],
    }


class SupervisedDynUNet(torch.nn.Module):
    """A DynUNet with heads at lower resolutions while it trains: what deep supervision needs.

    MONAI's own ``deep_supervision=True`` enlarges every head to full resolution and stacks them in one tensor, which
    takes the memory of as many full-size outputs, and it cannot be copied after a step. Here the heads come out as
    they are, as a list for :py:class:`monai_skelrec.TubeDeepSupervisionLoss`. The network within is a plain DynUNet
    that knows nothing of them: it is what evaluates, what is saved (:py:func:`inference_state_dict`), scripted and
    exported.

    There is a head at each resolution of the decoder but the coarsest, to which nnU-Net gives the weight 0: no
    parameter stays untrained, and DistributedDataParallel finds none unused.

    A DynUNet with instance norm, leaky ReLU and the numbers of :py:func:`plan_unet` has nnU-Net's plain design: two
    convolutions a level, the first one strided, transposed convolutions upwards, He initialisation. Its convolutions
    have no bias, which the norm behind each would remove again. ``res_block=True`` makes the encoder residual, and
    only the encoder; nnU-Net's residual encoders have more blocks a level besides.

    Args:
        network: of at least three levels, without ``deep_supervision`` of its own; shared, not copied.

    Raises:
        ValueError: when ``network`` has deep supervision already.

    Example:
        >>> network = SupervisedDynUNet(DynUNet(3, 1, 14, **plan_unet([64, 64, 64])))
        >>> [tuple(head.shape[2:]) for head in network(torch.zeros(1, 1, 64, 64, 64))]
        [(64, 64, 64), (32, 32, 32), (16, 16, 16)]
    """

    def __init__(self, network: DynUNet) -> None:
        super().__init__()
        if network.deep_supervision:
            raise ValueError("network has MONAI's deep supervision already: build it with deep_supervision=False.")
        self.network = network
        # the decoder's resolutions from the second finest on, without the coarsest
        heads = [network.get_output_block(level) for level in range(1, len(network.upsamples) - 1)]
        self.heads = torch.nn.ModuleList(heads).apply(network.initialize_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """
        Args:
            x: image, shape BCH[WD], a multiple of the product of strides on each axis.

        Returns:
            Logits. In training those of each head, full resolution first; in evaluation one tensor, shape BNH[WD].
        """
        if not self.training:
            logits: torch.Tensor = self.network(x)
            return logits
        skips = [self.network.input_block(x)]
        for down in self.network.downsamples:
            skips.append(down(skips[-1]))
        x = self.network.bottleneck(skips[-1])
        features = []
        for up, skip in zip(self.network.upsamples, reversed(skips)):
            x = up(x, skip)
            features.append(x)
        finest_first = features[::-1]
        return [self.network.output_block(finest_first[0]), *map(_apply, self.heads, finest_first[1:])]


def _apply(head: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = head(features)
    return logits


def training_network(network: torch.nn.Module, deep_supervision: bool = True) -> torch.nn.Module:
    """The network that is trained, around the one that will infer.

    Args:
        network: for inference.
        deep_supervision: whether a DynUNet gets heads at lower resolutions. Another network has heads of its own or
            none (SegResNetDS with ``dsdepth``, MedNeXt with ``deep_supervision``), and stays as it is.

    Returns:
        :py:class:`SupervisedDynUNet` of ``network``, or ``network``.
    """
    if deep_supervision and isinstance(network, DynUNet):
        return SupervisedDynUNet(network)
    return network


def inference_network(network: torch.nn.Module) -> torch.nn.Module:
    """What :py:func:`training_network` was given, its weights shared.

    Args:
        network: as trained; also within DataParallel or DistributedDataParallel.
    """
    if isinstance(network, (DataParallel, DistributedDataParallel)):
        network = network.module
    return network.network if isinstance(network, SupervisedDynUNet) else network


def inference_state_dict(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights for inference: they load strictly into the network that :py:func:`training_network` was given.

    Args:
        network: as trained; also within DataParallel or DistributedDataParallel.

    Returns:
        State dictionary without the heads that only training has.
    """
    return inference_network(network).state_dict()
