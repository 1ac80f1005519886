"""Patch -> logits: HRNet, the second network of the paper's tables, around the backbone that timm has."""

from __future__ import annotations

import torch
from monai.utils import optional_import
from torch.nn import functional as F

__all__ = ["HRNet"]


class HRNet(torch.nn.Module):
    """HRNet for pictures: four resolutions in parallel, joined at a quarter of the picture's, and one head.

    The head is HRNetV2's: all resolutions are enlarged to the finest one and stacked, a 1x1 convolution with batch norm
    and ReLU mixes them, another one gives the classes, and bilinear interpolation leads back to the picture's size. A
    thin structure is thus decided upon at a quarter of the resolution. There are no heads at lower resolutions.

    Needs timm (the extra ``hrnet``), which needs torchvision; nothing of it is loaded before an object is made.

    Sun et al. "Deep High-Resolution Representation Learning for Visual Recognition." TPAMI 2020.
    https://arxiv.org/abs/1908.07919

    Args:
        in_channels: of the picture.
        out_channels: classes, background included.
        variant: timm's name: ``hrnet_w18``, ``hrnet_w32``, ``hrnet_w48``, ...
        pretrained: start from weights trained on ImageNet, which timm downloads.

    Raises:
        ImportError: when timm is not there.
    """

    def __init__(
        self, in_channels: int, out_channels: int, variant: str = "hrnet_w48", pretrained: bool = False
    ) -> None:
        super().__init__()
        timm, installed = optional_import("timm")
        if not installed:
            raise ImportError(
                "HRNet needs timm, which is not installed or cannot be loaded (its torchvision must fit PyTorch): "
                "pip install 'monai_skelrec[hrnet]', or train another network_def."
            )
        # the four resolutions themselves, without the layers that a classifier puts on them
        self.backbone = timm.create_model(
            variant,
            pretrained=pretrained,
            in_chans=in_channels,
            features_only=True,
            feature_location="",
            out_indices=_ALL,
        )
        channels = sum(self.backbone.feature_info.channels())
        self.head = torch.nn.Sequential(
            torch.nn.Conv2d(channels, channels, 1, bias=False),
            torch.nn.BatchNorm2d(channels),
            torch.nn.ReLU(inplace=True),
            torch.nn.Conv2d(channels, out_channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: picture, shape BCHW, of any size.

        Returns:
            Logits, shape BNHW.
        """
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % _COARSEST, 0, -height % _COARSEST))
        branches = self.backbone(x)
        size = branches[0].shape[2:]
        joined = torch.cat([branches[0], *(_enlarge(branch, size) for branch in branches[1:])], 1)
        return _enlarge(self.head(joined), x.shape[2:])[..., :height, :width]


_ALL = (1, 2, 3, 4)  # the stem before them is no branch
_COARSEST = 32  # pixels of the picture in one of the last branch; timm adds up branches, which must fit


def _enlarge(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
