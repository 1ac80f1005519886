"""Skeleton Recall Loss for MONAI: networks that keep vessels, nerves, canals, roads and cracks in one piece."""

from __future__ import annotations

from .datasets import Split, list_cases, split_cases
from .deep_supervision import TubeDeepSupervisionLoss, pool_target
from .losses import DiceCESkeletonRecallLoss, SkeletonRecallLoss
from .metrics import (
    BettiErrorMetric,
    CenterlineDiceMetric,
    compute_betti_error,
    compute_betti_numbers,
    compute_centerline_dice,
)
from .phantoms import circle_of_willis, jaw, render, write_phantoms
from .renderings import write_renderings
from .skeletons import tubed_skeleton
from .transforms import (
    CheckScan,
    CheckScand,
    CheckScanD,
    CheckScanDict,
    MapLabelValues,
    MapLabelValuesd,
    MapLabelValuesD,
    MapLabelValuesDict,
    TubedSkeleton,
    TubedSkeletond,
    TubedSkeletonD,
    TubedSkeletonDict,
    check_order,
)

__all__ = [
    "BettiErrorMetric",
    "CenterlineDiceMetric",
    "CheckScan",
    "CheckScanD",
    "CheckScanDict",
    "CheckScand",
    "DiceCESkeletonRecallLoss",
    "MapLabelValues",
    "MapLabelValuesD",
    "MapLabelValuesDict",
    "MapLabelValuesd",
    "SkeletonRecallLoss",
    "Split",
    "TubeDeepSupervisionLoss",
    "TubedSkeleton",
    "TubedSkeletonD",
    "TubedSkeletonDict",
    "TubedSkeletond",
    "check_order",
    "circle_of_willis",
    "compute_betti_error",
    "compute_betti_numbers",
    "compute_centerline_dice",
    "jaw",
    "list_cases",
    "pool_target",
    "render",
    "split_cases",
    "tubed_skeleton",
    "write_phantoms",
    "write_renderings",
]
