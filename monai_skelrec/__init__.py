"""Skeleton Recall Loss for MONAI: networks that keep vessels, nerves, canals, roads and cracks in one piece."""

from __future__ import annotations

from .challenges import (
    CHALLENGES,
    Challenge,
    aggregate_toothfairy,
    aggregate_topcow,
    toothfairy2_scores,
    toothfairy3_scores,
    toothfairy_scores,
    topcow_scores,
)
from .crack_masks import CrackMaskReader
from .datasets import Split, list_cases, split_cases
from .deep_supervision import TubeDeepSupervisionLoss, pool_target
from .hrnet import HRNet
from .losses import DiceCESkeletonRecallLoss, SkeletonRecallLoss
from .metrics import (
    BettiErrorMetric,
    CenterlineDiceMetric,
    MeasureMetric,
    compute_betti_error,
    compute_betti_numbers,
    compute_centerline_dice,
    compute_measure,
)
from .networks import SupervisedDynUNet, inference_state_dict, plan_unet, training_network
from .phantoms import circle_of_willis, jaw, render, write_phantoms
from .pieces import PieceErrorLoss
from .renderings import write_renderings
from .sampling import RandPatchd, RandPatchD, RandPatchDict
from .sides import RandFlipSidesd, RandFlipSidesD, RandFlipSidesDict
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
    "CHALLENGES",
    "CenterlineDiceMetric",
    "Challenge",
    "CheckScan",
    "CheckScanD",
    "CheckScanDict",
    "CheckScand",
    "CrackMaskReader",
    "DiceCESkeletonRecallLoss",
    "HRNet",
    "MapLabelValues",
    "MapLabelValuesD",
    "MapLabelValuesDict",
    "MapLabelValuesd",
    "MeasureMetric",
    "PieceErrorLoss",
    "RandFlipSidesD",
    "RandFlipSidesDict",
    "RandFlipSidesd",
    "RandPatchD",
    "RandPatchDict",
    "RandPatchd",
    "SkeletonRecallLoss",
    "Split",
    "SupervisedDynUNet",
    "TubeDeepSupervisionLoss",
    "TubedSkeleton",
    "TubedSkeletonD",
    "TubedSkeletonDict",
    "TubedSkeletond",
    "aggregate_toothfairy",
    "aggregate_topcow",
    "check_order",
    "circle_of_willis",
    "compute_betti_error",
    "compute_betti_numbers",
    "compute_centerline_dice",
    "compute_measure",
    "inference_state_dict",
    "jaw",
    "list_cases",
    "plan_unet",
    "pool_target",
    "render",
    "split_cases",
    "toothfairy2_scores",
    "toothfairy3_scores",
    "toothfairy_scores",
    "topcow_scores",
    "training_network",
    "tubed_skeleton",
    "write_phantoms",
    "write_renderings",
]
