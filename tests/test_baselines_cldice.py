"""The soft skeleton against MONAI's, what its iterations do, and where it fails."""

from __future__ import annotations

import pytest
import torch
from monai.losses.cldice import soft_skel

from monai_skelrec import compute_betti_numbers
from monai_skelrec.baselines import DiceCEclDiceLoss
from monai_skelrec.baselines.cldice import soft_skeleton


@pytest.mark.parametrize("shape", [(2, 3, 12, 13), (1, 2, 8, 9, 10)])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_equals_monai(shape, iterations):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    ours, theirs = soft_skeleton(x, iterations), soft_skel(x, iterations)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((result**2).sum(), x)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_of_a_line_it_is_the_line_and_of_a_bar_its_middle():
    x = torch.zeros(1, 1, 11, 12)
    x[..., 2, :] = 1
    x[..., 5:10, :] = 1
    skeleton = soft_skeleton(x, 5)[0, 0]
    assert [row for row in range(11) if skeleton[row].any()] == [2, 7]
    assert (skeleton[[2, 7]] == 1).all()


@pytest.mark.parametrize("iterations, found", [(1, False), (5, False), (6, True), (20, True)])
def test_iterations_must_reach_half_the_thickness(iterations, found):
    bar = torch.zeros(1, 1, 20, 12)
    bar[..., 3:16, :] = 1  # 13 thick, from border to border
    assert soft_skeleton(bar, iterations).any() == found


def test_the_loss_heeds_its_iterations():
    """Of a bar that is thicker than they reach, clDice sees nothing at all, and a miss costs nothing."""
    label = torch.zeros(1, 1, 20, 12)
    label[..., 3:16, :] = 1
    missed = torch.stack([torch.full((20, 12), 50.0), torch.full((20, 12), -50.0)])[None]
    blind, seeing = DiceCEclDiceLoss(iterations=3), DiceCEclDiceLoss(iterations=6)
    for loss in (blind, seeing):
        loss(missed, torch.cat([label, label], 1))
    assert blind.terms["cldice"].item() == pytest.approx(0, abs=1e-6)
    # 12 pixels of skeleton, none found: recall is 1 / 13 with the smoothing, precision of nothing 1
    assert seeing.terms["cldice"].item() == pytest.approx(1 - (2 / 13) / (14 / 13), abs=1e-5)


def test_it_may_fall_to_pieces():
    """A known failure: the soft skeleton of a connected mask has gaps."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    oblique = ((rows - 0.4 * columns - 8).abs() <= 2).float()[None, None]
    assert compute_betti_numbers(oblique[0, 0].numpy() > 0)[0] == 1
    assert compute_betti_numbers(soft_skeleton(oblique, 10)[0, 0].numpy() > 0.5)[0] > 1
