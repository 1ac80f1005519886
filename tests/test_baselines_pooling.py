"""Neighbours' maxima against PyTorch's pooling and SciPy, values and gradients, ties and borders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.autograd import gradcheck
from torch.nn import functional as F

from monai_skelrec.baselines.pooling import largest_in_cross, largest_in_window

SHAPES = [(2, 3, 7, 6), (1, 2, 6, 5, 7), (1, 1, 1, 4), (1, 1, 3, 1, 2)]


def fields(shape, levels):
    """Random values; of few levels, so that most maxima are shared."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=random, dtype=torch.float64)
    x = (x * levels).round() if levels else x
    return x.requires_grad_(), torch.rand(shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_window_is_pytorchs_pooling_and_so_is_its_gradient_ties_included(shape, size, levels):
    x, weight = fields(shape, levels)
    pool = F.max_pool2d if len(shape) == 4 else F.max_pool3d
    ours, theirs = largest_in_window(x, size), pool(x, size, 1, size // 2)
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad((result * weight).sum(), x)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_is_scipys(shape):
    x, _ = fields(shape, 0)
    cross = ndimage.generate_binary_structure(len(shape) - 2, 1)[(None, None)]
    expected = ndimage.grey_dilation(x.detach().numpy(), footprint=cross, mode="constant", cval=-np.inf)
    np.testing.assert_array_equal(largest_in_cross(x).detach().numpy(), expected)


def test_gradient_goes_to_the_largest_and_of_equal_ones_to_the_first():
    x = torch.tensor([[5.0, 1.0, 5.0], [1.0, 1.0, 7.0], [0.0, 5.0, 0.0]])[None, None].requires_grad_()
    # the middle has 1, 1, 7 and 5 around it: the 7; the first in the last row has 1, 0 and 5: the 5
    for place, source in (((1, 1), (1, 2)), ((2, 0), (2, 1)), ((0, 1), (0, 0)), ((0, 0), (0, 0))):
        (gradient,) = torch.autograd.grad(largest_in_cross(x)[(0, 0, *place)], x)
        assert gradient[0, 0].nonzero().tolist() == [list(source)] and gradient.sum() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_of_equal_neighbours_in_a_cross_the_first_in_memory_gets_the_gradient(shape):
    x, weight = fields(shape, 2)
    (gradient,) = torch.autograd.grad((largest_in_cross(x) * weight).sum(), x)
    expected = torch.zeros_like(x)
    offsets = [[0] * (len(shape) - 2)]
    for axis in range(len(shape) - 2):
        offsets += [[step * (at == axis) for at in range(len(shape) - 2)] for step in (-1, 1)]
    for place in np.ndindex(*shape):
        around = [(*place[:2], *np.add(place[2:], offset)) for offset in sorted(offsets)]
        inside = [at for at in around if all(0 <= i < n for i, n in zip(at, shape))]
        expected[max(inside, key=lambda at: x[at].item())] += weight[place]  # max() takes the first of equal ones
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("size", [0, 2, -3])
def test_window_without_a_centre_is_refused(size):
    with pytest.raises(ValueError, match=f"size must be odd and at least 1, for a window has a centre, got {size}"):
        largest_in_window(torch.zeros(1, 1, 4, 4), size)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_gradient_is_right_where_there_are_no_ties(shape):
    x, _ = fields(shape, 0)
    assert gradcheck(largest_in_cross, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_input_stays_dtype_is_kept_and_infinities_are_values(dtype):
    x = torch.tensor([[-torch.inf, 2.0, -torch.inf, -torch.inf, -torch.inf]], dtype=dtype)[None, None]
    before = x.clone()
    result = largest_in_window(x.requires_grad_(), 3)
    result[..., :3].sum().backward()
    assert result.dtype == dtype and torch.equal(x.detach(), before)
    assert result[0, 0, 0].tolist() == [2, 2, 2, -torch.inf, -torch.inf]
    assert x.grad[0, 0, 0].tolist() == [0, 3, 0, 0, 0]


def test_strides_that_are_not_contiguous_give_the_same():
    x = torch.rand(1, 2, 5, 6, 7).to(memory_format=torch.channels_last_3d).transpose(2, 4).requires_grad_()
    ours, theirs = largest_in_window(x), F.max_pool3d(x.contiguous(), 3, 1, 1)
    torch.testing.assert_close(ours, theirs)
    weight = torch.rand(ours.shape)
    gradients = [torch.autograd.grad((result * weight).sum(), x)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients)
