"""Logits and label -> Dice, cross-entropy and clDice, with a soft skeleton: erosions and dilations of probabilities."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ._compound import ClassFields, HarmonicLoss, Ratio
from .pooling import largest_in_cross, largest_in_window

__all__ = ["DiceCEclDiceLoss", "soft_skeleton"]


def soft_skeleton(x: torch.Tensor, iterations: int) -> torch.Tensor:
    r"""Soft skeleton of [1]: what an opening removes, of the field and of its erosions.

    With erosion :math:`E` (smallest value of a voxel and its face neighbours) and dilation :math:`D` (largest of
    :math:`3^n`), :math:`x_0 = x`, :math:`x_{k+1} = E(x_k)` and :math:`\delta_k = \max(0, x_k - D(x_{k+1}))`:

    .. math::
        1 - \prod_{k=0}^{iterations} (1 - \delta_k)

    An object of which something is left after ``iterations`` erosions has no skeleton there, so these must reach half
    the thickness. It is no skeleton in the strict sense: it may have gaps, and be thicker than a voxel. Values are
    those of MONAI's ``soft_skel``; gradients too, but where neighbours are equal: there one of them gets all of it, as
    in a pooling, where MONAI's erosion shares some of it out.

    [1] Shit et al. "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation." CVPR 2021.
    https://arxiv.org/abs/2003.07311

    Args:
        x: values from 0 to 1, shape BNH[WD].
        iterations: number of erosions.

    Returns:
        Values from 0 to 1, shape BNH[WD].
    """
    skeleton = torch.zeros_like(x)
    for _ in range(iterations + 1):
        eroded = -largest_in_cross(-x)
        removed = F.relu(x - largest_in_window(eroded))
        skeleton = skeleton + (1 - skeleton) * removed
        x = eroded
        if not x.detach().any():
            break  # of nothing, nothing more is removed
    return skeleton


class DiceCEclDiceLoss(HarmonicLoss):
    r"""Dice, cross-entropy and soft clDice of [1], class by class.

    Per item and class with probabilities :math:`p`, label :math:`Y` and the soft skeletons :math:`S_p, S_Y`:

    .. math::
        1 - \frac{2 P R}{P + R},\qquad P = \frac{\sum S_p Y + smooth}{\sum S_p + smooth},\quad
        R = \frac{\sum S_Y\, p + smooth}{\sum S_Y + smooth}

    averaged over the classes that the label of the item holds, then over items. The authors' code pools all channels
    into one ratio, in which a thick class drowns a thin one, and takes 10 iterations whatever it is asked for.

    [1] Shit et al. "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation." CVPR 2021.
    https://arxiv.org/abs/2003.07311

    Args:
        iterations: of :py:func:`soft_skeleton`; at least half the thickness of the thickest class, in voxels.
        smooth: added to numerators and denominators.
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
        terms: ``dice``, ``ce`` and ``cldice`` of the last call.

    Raises:
        ValueError: when ``iterations`` is below 1.
    """

    NAME = "cldice"

    def ratios(self, fields: ClassFields) -> tuple[Ratio, Ratio]:
        p, y = fields.p, fields.y
        of_p, of_y = self.skeletons(p, y)
        return (of_p * y, of_p), (of_y * p, of_y)

    def skeletons(self, p: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the probabilities and of the label, shape M1H[WD] both."""
        return soft_skeleton(p, self.iterations), soft_skeleton(y, self.iterations)
