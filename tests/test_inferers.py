"""Mirror images of a window, averaged: against an explicit loop, and what must hold for any network."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from monai_skelrec.inferers import AutocastInferer, MirroringInferer, axes_to_mirror, mirror_images, mirrored


def network(dims=3):
    torch.manual_seed(0)
    return (torch.nn.Conv3d if dims == 3 else torch.nn.Conv2d)(1, 3, 3, padding=1).requires_grad_(False)


def test_every_combination_of_flips_once():
    assert mirror_images([0, 2], 3) == [(), (2,), (4,), (2, 4)]
    assert len(mirror_images([0, 1, 2], 3)) == 8


def test_mirrored_logits_are_the_mean_of_an_explicit_loop():
    net, x = network(), torch.rand(2, 1, 5, 6, 7)
    loop = [net(x), net(x.flip(2)).flip(2), net(x.flip(4)).flip(4), net(x.flip(4).flip(2)).flip(2).flip(4)]
    torch.testing.assert_close(mirrored(net, [0, 2])(x), sum(loop) / 4)


@pytest.mark.parametrize("axis", [0, 1])
def test_mirroring_the_image_mirrors_the_logits_on_mirrored_axes_only(axis):
    predict, x = mirrored(network(2), [1]), torch.rand(1, 1, 6, 8)
    straight, turned = predict(x), predict(x.flip(axis + 2)).flip(axis + 2)
    assert torch.allclose(straight, turned, atol=1e-6) == (axis == 1)


def test_no_axes_leave_the_network_alone():
    net = network()
    assert mirrored(net, []) is net


def test_input_and_network_output_are_left_alone():
    x = torch.rand(1, 1, 4, 4)
    kept, seen = x.clone(), []

    def net(windows):
        seen.append(windows * 2)
        return seen[-1]

    torch.testing.assert_close(mirrored(net, [0])(x), 2 * x)
    assert torch.equal(x, kept) and torch.equal(seen[0], 2 * x)


def test_inferer_mirrors_each_window():
    net, x = network(), torch.rand(1, 1, 12, 10, 9)
    options = {"roi_size": (6, 6, 6), "overlap": 0.5, "mode": "gaussian"}
    ours = MirroringInferer(mirror_axes=[0, 1], **options)(x, net)
    torch.testing.assert_close(ours, SlidingWindowInferer(**options)(x, mirrored(net, [0, 1])))
    assert not torch.allclose(ours, SlidingWindowInferer(**options)(x, net))


def test_from_side_to_side_left_logits_become_right_ones():
    net, x, pairs = network(), torch.rand(2, 1, 5, 6, 7), {1: 2, 2: 1}
    order = [0, 2, 1]
    flipped = net(x.flip(2)).flip(2)[:, order]
    torch.testing.assert_close(mirrored(net, [0], pairs)(x), (net(x) + flipped) / 2)
    both = net(x.flip(2).flip(3)).flip(2).flip(3)[:, order]
    loop = [net(x), flipped, net(x.flip(3)).flip(3), both]
    torch.testing.assert_close(mirrored(net, [0, 1], pairs)(x), sum(loop) / 4)
    # along other axes it is the plain mean
    torch.testing.assert_close(mirrored(net, [1, 2], pairs)(x), mirrored(net, [1, 2])(x))
    names, options = ["background", "R-ICA", "L-ICA"], {"roi_size": (4, 4, 4), "overlap": 0.5}
    windows = MirroringInferer(mirror_axes=[0], class_names=names, mirror_pairs=[names[1:]], **options)(x, net)
    torch.testing.assert_close(windows, SlidingWindowInferer(**options)(x, mirrored(net, [0], pairs)))


def test_mirror_images_of_a_task_without_any_are_refused():
    assert axes_to_mirror(True, [1, 2]) == [1, 2] and axes_to_mirror(False, [1, 2]) == axes_to_mirror(False, []) == []
    with pytest.raises(ValueError, match="this task has none: .* Leave mirror out, or train with --mirror_axes first"):
        axes_to_mirror(True, [])


@pytest.mark.parametrize("axes", [[3], [-1], [0, 0]])
def test_axes_that_do_not_exist_are_refused(axes):
    with pytest.raises(ValueError, match="mirror_axes must be axes 0 to 2, each once"):
        mirrored(network(), axes)(torch.rand(1, 1, 4, 4, 4))


def test_on_a_cpu_amp_runs_the_network_in_bfloat16_and_hands_over_float32():
    net, x = network(), torch.rand(1, 1, 8, 8, 8)
    seen = []
    net.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    exact, rounded = net(x), AutocastInferer(SimpleInferer())(x, net)
    assert seen == [torch.float32, torch.bfloat16] and rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0.02)


def test_without_amp_an_inferer_is_left_as_it_is():
    net, x = network(), torch.rand(1, 1, 8, 9, 10)
    window = SlidingWindowInferer((4, 4, 4), overlap=0.5)
    assert torch.equal(AutocastInferer(window, amp=False)(x, net), window(x, net))


def test_every_training_head_comes_back_in_float32():
    def heads(x):
        return [network()(x), network()(x)[..., ::2]]

    found = AutocastInferer(SimpleInferer())(torch.rand(1, 1, 8, 8, 8), heads)
    assert [head.dtype for head in found] == [torch.float32] * 2 and found[1].shape[-1] == 4
