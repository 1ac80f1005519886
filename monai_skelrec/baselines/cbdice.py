"""Logits and label -> Dice, cross-entropy and cbDice: clDice in which radii and the distance to the wall count."""

from __future__ import annotations

from typing import NamedTuple

import torch
from monai.transforms.utils import distance_transform_edt

from ._compound import ClassFields, HarmonicLoss, Ratio
from .cldice import soft_skeleton

__all__ = ["DiceCEcbDiceLoss", "Geometry", "geometry"]

_LEAST = 1e-7


class Geometry(NamedTuple):
    """How deep each voxel lies and how thick the structure is, in units of its largest radius; shape M1H[WD]."""

    depth: torch.Tensor  # distance to the background, 0 to 1, 0 outside
    radius: torch.Tensor  # the same on the skeleton, 0 elsewhere
    weight: torch.Tensor  # 1 / radius in 2D, 1 / radius**2 in 3D, on the skeleton, 0 elsewhere


def geometry(p: torch.Tensor, skeleton: torch.Tensor) -> Geometry:
    """Depths, radii and weights of fields, of which those above 0.5 are inside; without a gradient.

    Args:
        p: values from 0 to 1, shape M1H[WD].
        skeleton: of ``p``, shape M1H[WD].

    Returns:
        Dtype and device of ``p``.
    """
    mask = p.detach() > 0.5
    line = (skeleton.detach() > 0.5) & mask
    depth = torch.as_tensor(distance_transform_edt(mask[:, 0])).to(p).unsqueeze(1)
    # a mask without any background has no wall to measure from
    full = mask.flatten(1).all(1)
    depth[full] = 1
    largest = (depth * line).flatten(1).amax(1).clamp(min=1).view(-1, *[1] * (p.ndim - 1))
    depth = (depth / largest).clamp(max=1)
    weight = (1 + _LEAST) / (depth ** (p.ndim - 3) + _LEAST)
    return Geometry(depth, depth * line, weight * line)


class DiceCEcbDiceLoss(HarmonicLoss):
    r"""Dice, cross-entropy and the centreline boundary Dice (cbDice) of [1], class by class.

    With probabilities :math:`p`, label :math:`Y`, their soft skeletons :math:`S`, and from :py:func:`geometry` the
    depth :math:`d`, radius :math:`r` and weight :math:`w` of each of the two, let :math:`q_p = w_p S_p` and
    :math:`q_Y = w_Y S_Y`; where both have a radius, that of the other counts:

    .. math::
        P = \frac{\sum q_p\, d_Y}{\sum q_p \cdot (r_Y \text{ or, where it is 0, } r_p\, p)},\qquad
        R = \frac{\sum q_Y\, d_p\, p}{\sum q_Y \cdot (r_p\, p \text{ or, where it is 0, } r_Y)}

    with ``smooth`` added to each sum; the term is :math:`1 - 2PR/(P+R)`, averaged over the classes that the label of
    the item holds, then over items. The authors' code merges all classes into one foreground and returns
    :math:`-2PR/(P+R)`. Two properties of the formula: each ratio may exceed 1 (a thin predicted line off the label's
    centreline), and where both skeletons coincide a wrong radius costs nothing. It is a loss beside Dice, no measure.

    [1] Shi et al. "Centerline Boundary Dice Loss for Vascular Segmentation." MICCAI 2024.
    https://arxiv.org/abs/2407.01517

    Args:
        iterations: of the soft skeleton; at least half the thickness of the thickest class, in voxels.
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
        terms: ``dice``, ``ce`` and ``cbdice`` of the last call.

    Raises:
        ValueError: when ``iterations`` is below 1.
    """

    NAME = "cbdice"

    def ratios(self, fields: ClassFields) -> tuple[Ratio, Ratio]:
        p, y = fields.p, fields.y
        skeleton_p, skeleton_y = soft_skeleton(p, self.iterations), soft_skeleton(y, self.iterations)
        of_p, of_y = geometry(p, skeleton_p), geometry(y, skeleton_y)
        line_p, line_y = of_p.weight * skeleton_p, of_y.weight * skeleton_y
        radius_p = of_p.radius * p
        precision = line_p * of_y.depth, line_p * torch.where(of_y.radius > 0, of_y.radius, radius_p)
        recall = line_y * of_p.depth * p, line_y * torch.where(radius_p > 0, radius_p, of_y.radius)
        return precision, recall
