"""Logits and label -> Dice, cross-entropy and clDice on skeletons that keep the topology of what they are taken of."""

from __future__ import annotations

import torch

from .cldice import DiceCEclDiceLoss
from .simple_points import thin

__all__ = ["DiceCETopoclDiceLoss", "sampled_skeleton"]

# beyond these a probability is certain: the logarithms of its odds stay finite in float32
_LEAST = 1e-6


def sampled_skeleton(p: torch.Tensor, iterations: int, noise: float = 0.33, temperature: float = 1.0) -> torch.Tensor:
    r"""Skeleton of a mask drawn from probabilities, with a gradient: the skeletonisation of [1].

    With logistic noise :math:`L = \log U - \log (1 - U)`, :math:`U` uniform, a voxel is drawn where

    .. math::
        z = \log \frac{p}{1 - p} + noise \cdot L > 0

    and passes the gradient of :math:`\sigma(z / temperature)` (reparametrisation and straight-through). The mask is
    thinned by :py:func:`monai_skelrec.baselines.simple_points.thin`. Whether a voxel is a simple point is constant
    between flips of voxels, so its derivative is 0 wherever it has one: the gradient goes through the voxels that are
    left.

    [1] Menten et al. "A Skeletonization Algorithm for Gradient-Based Optimization." ICCV 2023.
    https://arxiv.org/abs/2309.02527

    Args:
        p: probabilities, shape M1H[WD], float32 or float64.
        iterations: layers to peel off; at least half the thickness.
        noise: scale of the noise; 0 thresholds at 0.5.
        temperature: of the gradient's sigmoid; higher is flatter.

    Returns:
        0 or 1, shape M1H[WD].
    """
    likely = p.clamp(_LEAST, 1 - _LEAST)
    z = likely.log() - (1 - likely).log()
    if noise > 0:
        uniform = torch.rand_like(z).clamp(_LEAST, 1 - _LEAST)
        z = z + noise * (uniform.log() - (1 - uniform).log())
    soft = torch.sigmoid(z / temperature)
    # ignored voxels, of probability 0, are never drawn
    drawn = (z.detach() > 0) & (p.detach() > 0)
    left = thin(drawn[:, 0], iterations).unsqueeze(1)
    return left * (1 + (soft - soft.detach()))


class DiceCETopoclDiceLoss(DiceCEclDiceLoss):
    r"""Dice, cross-entropy and clDice, its soft skeleton replaced by the topology-preserving one of [1].

    The formula is that of :py:class:`monai_skelrec.baselines.DiceCEclDiceLoss` with :math:`S_p` of
    :py:func:`sampled_skeleton` and :math:`S_Y` the thinned label. This is the "Topo-clDice" of the skeleton recall
    paper's Table 2. The draws come from PyTorch's generator of the device of the logits.

    [1] Menten et al. "A Skeletonization Algorithm for Gradient-Based Optimization." ICCV 2023.
    https://arxiv.org/abs/2309.02527

    Args:
        iterations: layers to peel off; at least half the thickness of the thickest class, in voxels.
        noise: scale of the noise of the drawn mask; 0 thresholds at 0.5.
        temperature: of the sigmoid of its gradient.
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
        terms: ``dice``, ``ce`` and ``topo_cldice`` of the last call.

    Raises:
        ValueError: when ``iterations`` is below 1, ``noise`` negative or ``temperature`` not positive.
    """

    NAME = "topo_cldice"

    def __init__(
        self,
        iterations: int = 10,
        noise: float = 0.33,
        temperature: float = 1.0,
        smooth: float = 1.0,
        include_background: bool = False,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        lambda_skeleton: float = 1.0,
        sigmoid: bool = False,
        batch: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            iterations,
            smooth,
            include_background,
            lambda_dice,
            lambda_ce,
            lambda_skeleton,
            sigmoid,
            batch,
            ignore_index,
        )
        if noise < 0 or temperature <= 0:
            raise ValueError(f"noise must be at least 0 and temperature positive, got {noise} and {temperature}.")
        self.noise = float(noise)
        self.temperature = float(temperature)

    def skeletons(self, p: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        of_p = sampled_skeleton(p, self.iterations, self.noise, self.temperature)
        return of_p, thin(y[:, 0] > 0, self.iterations).unsqueeze(1)
