"""The rivals of skeleton recall: losses that take the same target, one file each, beside Dice and cross-entropy."""

from __future__ import annotations

from .cbdice import DiceCEcbDiceLoss
from .clce import DiceCEclCELoss
from .cldice import DiceCEclDiceLoss
from .scnp import SCNPDiceCELoss
from .topo_cldice import DiceCETopoclDiceLoss

__all__ = ["DiceCETopoclDiceLoss", "DiceCEcbDiceLoss", "DiceCEclCELoss", "DiceCEclDiceLoss", "SCNPDiceCELoss"]
