"""Logits and label -> Dice, cross-entropy and centreline cross-entropy: cross-entropy where the soft skeletons are."""

from __future__ import annotations

import torch

from ._compound import ClassFields, CompoundLoss
from .cldice import soft_skeleton

__all__ = ["DiceCEclCELoss"]


class DiceCEclCELoss(CompoundLoss):
    r"""Dice, cross-entropy and the centreline cross-entropy (clCE) of [1], class by class.

    With the cross-entropy :math:`e` of each voxel and the soft skeletons :math:`S_Y, S_p` of label and prediction:

    .. math::
        \frac{1}{V} \sum_v e_v\, (S_{Y,v} + S_{p,v})

    over the :math:`V` voxels that are not ignored, averaged over the classes that the label of the item holds, then
    over items. Without the Dice and the cross-entropy of whole masks and with two classes this is the authors' loss.
    It divides by voxels, not by the length of the skeleton: with structures of a hundredth of the volume it is two
    orders of magnitude smaller than the cross-entropy along them, and a larger weight may serve.

    [1] Acebes et al. "The Centerline-Cross Entropy Loss for Vessel-Like Structure Segmentation: Better Topology
    Consistency Without Sacrificing Accuracy." MICCAI 2024. https://doi.org/10.1007/978-3-031-72111-3_67

    Args:
        iterations: of the soft skeleton; at least half the thickness of the thickest class, in voxels.
        include_background: whether Dice counts channel 0; True for overlapping regions. The term never scores the
            background of class indices.
        lambda_dice: weight of Dice.
        lambda_ce: weight of cross-entropy.
        lambda_skeleton: weight of the term, which takes the place of skeleton recall; at 0 it is not computed.
        sigmoid: independent channels instead of exclusive classes.
        batch: whether the sums go over the batch too, as if it were one item. Under DistributedDataParallel those of
            the term are of the batch of one process.
        ignore_index: label of voxels that nothing counts; to a skeleton they are background.

    Attributes:
        terms: ``dice``, ``ce`` and ``clce`` of the last call.

    Raises:
        ValueError: when ``iterations`` is below 1.
    """

    NAME = "clce"

    def term(self, fields: ClassFields) -> torch.Tensor:
        skeletons = soft_skeleton(fields.y, self.iterations) + soft_skeleton(fields.p, self.iterations)
        n_voxels = fields.total(fields.keep[fields.item])
        return fields.mean(fields.total(fields.entropy() * skeletons) / n_voxels)
