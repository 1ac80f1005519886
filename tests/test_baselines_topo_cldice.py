"""Thinning that keeps components, loops and cavities, by brute force; and the gradient of a drawn skeleton by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from shapes import random_mask

from monai_skelrec import compute_betti_numbers
from monai_skelrec.baselines import DiceCETopoclDiceLoss
from monai_skelrec.baselines.cldice import soft_skeleton
from monai_skelrec.baselines.simple_points import _NEIGHBOURS, _simple, thin
from monai_skelrec.baselines.topo_cldice import sampled_skeleton


def thinned(mask: np.ndarray, iterations: int = 20) -> np.ndarray:
    return thin(torch.from_numpy(mask)[None], iterations)[0].numpy()


def is_simple(cube: np.ndarray) -> bool:
    """The definition: one 26-component of foreground around, and one 6-component of background at the faces."""
    around = cube.copy()
    around[1, 1, 1] = False
    foreground = ndimage.label(around, np.ones((3, 3, 3)))[1]
    no_corners = ndimage.generate_binary_structure(3, 2)
    background = ~cube & no_corners
    components, _ = ndimage.label(background)
    at_faces = components[ndimage.generate_binary_structure(3, 1)]
    return foreground == 1 and len(set(at_faces[at_faces > 0])) == 1


@pytest.mark.parametrize("density", [0.2, 0.4, 0.6, 0.8, 0.9])
def test_simple_points_are_those_of_the_definition(density):
    cubes = np.random.default_rng(0).random((200, 3, 3, 3)) < density
    cubes[:, 1, 1, 1] = True
    around = np.stack([cubes[:, 1 + a, 1 + b, 1 + c] for a, b, c in _NEIGHBOURS], 1)
    expected = [is_simple(cube) for cube in cubes]
    assert _simple(torch.from_numpy(around)).tolist() == expected
    assert len(set(_NEIGHBOURS)) == 26


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["bars", "blobs", "tubes", "noise"])
def test_components_loops_and_cavities_stay(dims, kind):
    generator = np.random.default_rng(dims)
    for _ in range(25):
        mask = random_mask(generator, dims, kind)
        skeleton = thinned(mask)
        assert not (skeleton & ~mask).any()
        assert compute_betti_numbers(skeleton) == compute_betti_numbers(mask)


def test_the_soft_skeleton_does_not_keep_them():
    generator = np.random.default_rng(2)
    masks = [random_mask(generator, 3, "tubes") for _ in range(25)]
    soft = [soft_skeleton(torch.from_numpy(mask)[None, None].double(), 20)[0, 0].numpy() > 0.5 for mask in masks]
    broken = [compute_betti_numbers(a) != compute_betti_numbers(b) for a, b in zip(masks, soft)]
    assert sum(broken) > 2


def test_a_thick_ring_becomes_a_thin_one_and_a_bar_of_even_thickness_stays():
    rows, columns = np.mgrid[:31, :31] - 15
    ring = abs(np.hypot(rows, columns) - 10) <= 2.5
    skeleton = thinned(ring)
    assert compute_betti_numbers(skeleton) == (1, 1)
    assert abs(np.hypot(rows, columns)[skeleton] - 10).max() < 1.5
    assert skeleton.sum() < 80
    bar = np.zeros((8, 8, 34), bool)
    bar[2:6, 2:6, 1:33] = True  # scikit-image's thinning leaves nothing of it
    assert thinned(bar).any(axis=(0, 1)).sum() >= 28


@pytest.mark.parametrize("iterations, width", [(1, 7), (2, 5), (3, 3), (4, 1), (9, 1)])
def test_each_iteration_peels_off_one_layer(iterations, width):
    bar = np.zeros((15, 40), bool)
    bar[3:12, 2:38] = True  # 9 thick
    assert thinned(bar, iterations)[:, 20].sum() == width


def test_ends_of_lines_and_single_voxels_stay():
    mask = np.zeros((6, 9), bool)
    mask[2, 1:8] = True
    mask[5, 8] = True
    np.testing.assert_array_equal(thinned(mask), mask)


def test_many_masks_at_once_are_thinned_each_alone():
    masks = np.random.default_rng(1).random((4, 9, 10, 8)) < 0.7
    together = thin(torch.from_numpy(masks), 5).numpy()
    for mask, skeleton in zip(masks, together):
        np.testing.assert_array_equal(thinned(mask, 5), skeleton)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_gradient_is_that_of_the_drawn_voxels_that_are_left(temperature):
    p = torch.rand(2, 1, 9, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    skeleton = sampled_skeleton(p, 3, noise=0, temperature=temperature)
    skeleton.sum().backward()
    left = thin(p[:, 0] > 0.5, 3)[:, None]
    torch.testing.assert_close(skeleton, left.double())
    # of sigmoid(logit(p) / temperature)
    soft = torch.sigmoid(torch.logit(p) / temperature).detach()
    expected = left * soft * (1 - soft) / temperature / (p * (1 - p)).detach()
    torch.testing.assert_close(p.grad, expected)


def test_voxels_are_drawn_as_often_as_the_noise_says():
    torch.manual_seed(0)
    # isolated voxels, which thinning never touches; logistic noise of scale 1 draws them with their probability
    p = torch.zeros(1, 1, 200, 200)
    p[..., ::2, ::2] = 0.3
    for noise, expected in ((1.0, 0.3), (0.5, 0.155), (0, 0)):
        drawn = sampled_skeleton(p, 1, noise)
        assert drawn.sum().item() / 10000 == pytest.approx(expected, abs=0.02)
        assert set(drawn.unique().tolist()) <= {0.0, 1.0}


def test_a_seed_repeats_the_draw():
    p = torch.rand(1, 1, 20, 20)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sampled_skeleton(p, 3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_noise_and_temperature_are_checked():
    with pytest.raises(ValueError, match="noise must be at least 0 and temperature positive, got -1 and 1"):
        DiceCETopoclDiceLoss(noise=-1)
    with pytest.raises(ValueError, match="temperature positive, got 0.33 and 0"):
        DiceCETopoclDiceLoss(temperature=0)


def test_a_gap_costs_more_than_as_many_voxels_at_the_wall():
    label = torch.zeros(1, 1, 9, 30)
    label[..., 3:6, :] = 1
    target, values = torch.cat([label, label], 1), []
    for removed in ((slice(3, 6), slice(14, 16)), (slice(3, 4), slice(10, 16))):
        predicted = label.clone()
        predicted[(..., *removed)] = 0
        logits = 50 * torch.cat([1 - 2 * predicted, 2 * predicted - 1], 1)
        loss = DiceCETopoclDiceLoss(iterations=3, noise=0)
        loss(logits, target)
        values.append(loss.terms["topo_cldice"].item())
    assert values[0] > 2 * values[1]
