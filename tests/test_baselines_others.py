"""cbDice, clCE and SCNP: what each adds, counted by hand or written out plainly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from monai_skelrec import DiceCESkeletonRecallLoss
from monai_skelrec.baselines import DiceCEcbDiceLoss, DiceCEclCELoss, DiceCEclDiceLoss, SCNPDiceCELoss
from monai_skelrec.baselines.cbdice import geometry
from monai_skelrec.baselines.cldice import soft_skeleton
from monai_skelrec.baselines.scnp import worst_neighbour


def certain(mask: torch.Tensor) -> torch.Tensor:
    return 50 * torch.cat([1 - 2 * mask, 2 * mask - 1], 1)


def term(loss: torch.nn.Module, predicted: torch.Tensor, label: torch.Tensor) -> float:
    loss(certain(predicted), torch.cat([label, label], 1))
    return list(loss.terms.values())[-1].item()


# --- cbDice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_radii_and_weights_of_two_bars(dims):
    mask = torch.zeros(1, 1, 12, 20)
    mask[..., 1, :], mask[..., 4:9, :] = 1, 1  # 1 and 5 thick: radii 1 and 3
    if dims == 3:  # a wall as thick in the third dimension: the nearest background is above or below
        mask = mask[..., None].expand(-1, -1, -1, -1, 9)
    skeleton = soft_skeleton(mask, 4)
    found = geometry(mask, skeleton)
    line = (0, 0, slice(None), 10) if dims == 2 else (0, 0, slice(None), 10, 4)
    third = 1 / 3
    assert found.depth[line].tolist() == pytest.approx([0, third, 0, 0, third, 2 * third, 1, 2 * third, third, 0, 0, 0])
    assert found.radius[line].tolist() == pytest.approx([0, third, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    assert found.weight[line].tolist() == pytest.approx([0, 3 ** (dims - 1), *[0] * 4, 1, *[0] * 5], rel=1e-4)


def test_a_thin_vessel_counts_more_than_in_cldice():
    label = torch.zeros(1, 1, 12, 20)
    label[..., 1, :], label[..., 4:9, :] = 1, 1
    without_thin, without_thick = label.clone(), label.clone()
    without_thin[..., 1, :], without_thick[..., 4:9, :] = 0, 0
    cbdice, cldice = DiceCEcbDiceLoss(iterations=4, smooth=1e-5), DiceCEclDiceLoss(iterations=4, smooth=1e-5)
    # both skeletons are equally long, so clDice halves the recall either way
    assert term(cldice, without_thin, label) == pytest.approx(1 / 3, abs=1e-4)
    assert term(cldice, without_thick, label) == pytest.approx(1 / 3, abs=1e-4)
    # of the thick one alone, radius 3 is the unit for both, and each line has weight times radius 1
    assert term(cbdice, without_thin, label) == pytest.approx(1 / 3, abs=1e-4)
    # the thin one alone is its own unit: its recall is 3 of 3 for each pixel, against 1 missed of the thick one
    assert term(cbdice, without_thick, label) == pytest.approx(1 - 2 * 0.75 / 1.75, abs=1e-4)


def test_known_failures_of_the_radius_weights():
    label = torch.zeros(1, 1, 19, 20)
    label[..., 3:8, :], label[..., 12:17, :] = 1, 1
    loss = DiceCEcbDiceLoss(iterations=4, smooth=1e-5)
    too_thin = label.clone()
    too_thin[..., 12:17, :] = 0
    beside = too_thin.clone()
    too_thin[..., 14, :], beside[..., 13, :] = 1, 1
    # a line instead of five rows costs nothing on the centreline
    assert term(loss, too_thin, label) == pytest.approx(0, abs=1e-4)
    # a row beside it, precision is (1 + 3 * 2/3) / (1 + 3 * 1/3) = 1.5; recall is 1 / 2
    assert term(loss, beside, label) == pytest.approx(1 - 2 * 1.5 * 0.5 / 2, abs=1e-4)


def test_a_shift_within_the_label_costs_more_than_in_cldice():
    label = torch.zeros(1, 1, 14, 20)
    label[..., 3:10, :] = 1
    shifted = torch.roll(label, 2, 2)
    cbdice, cldice = DiceCEcbDiceLoss(iterations=5), DiceCEclDiceLoss(iterations=5)
    assert term(cldice, shifted, label) == pytest.approx(0, abs=1e-5)
    # the skeleton lies two pixels beside the middle: depth 2 of 4 instead of 4 of 4, both ways
    assert term(cbdice, shifted, label) == pytest.approx(1 - (0.5 * 20 + 1) / (20 + 1), abs=1e-4)


def test_a_mask_without_background_and_a_skeleton_beyond_the_mask_are_no_trouble():
    full = torch.ones(1, 1, 6, 6)
    assert (geometry(full, torch.ones_like(full)).depth == 1).all()
    p = torch.full((1, 1, 6, 6), 0.4)
    assert not geometry(p, torch.ones_like(p)).weight.any()


# --- centreline cross-entropy ----------------------------------------------------------------------------------------


def test_clce_of_uniform_logits_is_the_share_of_the_skeleton_times_the_entropy():
    label = torch.zeros(1, 1, 3, 8)
    label[..., 1, :] = 1
    # probabilities without any relief have no skeleton: the label's 8 of 24 pixels are left
    loss = DiceCEclCELoss()
    loss(torch.zeros(1, 3, 3, 8), torch.cat([label, label], 1))
    assert loss.terms["clce"].item() == pytest.approx(math.log(3) * 8 / 24, abs=1e-6)


def test_clce_equals_the_formula_written_out():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 9, 10, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (2, 1, 9, 10), generator=generator)
    e, p = cross_entropy(logits, label[:, 0], reduction="none"), torch.softmax(logits, 1)
    y = one_hot(label[:, 0], 4).movedim(-1, 1).double()
    expected = [(e * (soft_skeleton(y, 3) + soft_skeleton(p, 3))[:, c]).mean().item() for c in (1, 2, 3)]
    loss = DiceCEclCELoss(iterations=3)
    loss(logits, torch.cat([label, label], 1))
    assert loss.terms["clce"].item() == pytest.approx(np.mean(expected), abs=1e-12)


def test_clce_does_not_count_ignored_voxels_among_all():
    label = torch.zeros(1, 1, 3, 16)
    label[..., 1, :8] = 1
    label[..., 8:] = 255
    loss = DiceCEclCELoss(ignore_index=255)
    missed = certain(torch.zeros_like(label)) / 10  # the entropy of a miss is the difference of the logits
    loss(missed, torch.cat([label, torch.zeros_like(label)], 1))
    assert loss.terms["clce"].item() == pytest.approx(10 * 8 / 24, rel=1e-3)


# --- SCNP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, size", [((6, 7), 3), ((6, 7), 5), ((4, 5, 3), 3)])
@pytest.mark.parametrize("ignore_index", [None, 9])
def test_each_logit_is_the_worst_of_its_neighbours_of_the_same_class(shape, size, ignore_index):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, *shape, generator=generator)
    label = torch.randint(0, 3, (1, 1, *shape), generator=generator)
    if ignore_index is not None:
        label[0, 0, 2] = ignore_index
    pooled = worst_neighbour(logits, label, size, ignore_index)
    half = size // 2
    for c, *v in itertools.product(range(3), *map(range, shape)):
        own = label[(0, 0, *v)].item()
        window = itertools.product(*(range(max(0, a - half), min(n, a + half + 1)) for a, n in zip(v, shape)))
        same = [
            logits[(0, c, *u)].item()
            for u in window
            if label[(0, 0, *u)] != ignore_index and (label[(0, 0, *u)] == c) == (own == c)
        ]
        expected = logits[(0, c, *v)].item() if own == ignore_index else min(same) if own == c else max(same)
        assert pooled[(0, c, *v)].item() == pytest.approx(expected)


def test_a_gap_costs_at_all_its_neighbours_and_gets_their_gradient():
    label = torch.zeros(1, 1, 5, 9)
    label[..., 2, :] = 1
    gap = label.clone()
    gap[..., 2, 4] = 0
    logits = (certain(gap) / 10).requires_grad_()
    target = torch.cat([label, label], 1)
    plain = DiceCESkeletonRecallLoss(lambda_dice=0, lambda_skeleton=0)(logits, target).item()
    pooled = SCNPDiceCELoss(lambda_dice=0)(logits, target)
    # of 45 pixels one is wrong, by the difference of the logits; with its neighbours along the line three are
    assert plain == pytest.approx(10 / 45, rel=1e-3)
    assert pooled.item() == pytest.approx(3 * 10 / 45, rel=1e-3)
    pooled.backward()
    assert logits.grad[0, 1, 2, 4].item() == pytest.approx(-3 / 45, rel=1e-3)
    assert logits.grad[0, 1, 2, [3, 5]].abs().max() < 1e-5


def test_a_window_of_one_is_dice_and_cross_entropy_and_recall_can_join():
    logits, label = torch.randn(2, 3, 6, 7), torch.randint(0, 3, (2, 1, 6, 7))
    target = torch.cat([label, label], 1)
    for lambda_skeleton in (0.0, 1.0):
        plain = DiceCESkeletonRecallLoss(lambda_skeleton=lambda_skeleton)(logits, target)
        assert SCNPDiceCELoss(1, lambda_skeleton=lambda_skeleton)(logits, target).item() == pytest.approx(plain.item())
    assert SCNPDiceCELoss(3)(logits, target).item() > plain.item() - 1


@pytest.mark.parametrize("size", [0, 2, -3])
def test_a_window_has_a_centre(size):
    with pytest.raises(ValueError, match=f"size must be odd and at least 1, .* got {size}"):
        SCNPDiceCELoss(size)
