"""Logits that arrive piece by piece are those of MONAI's sliding window."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import sliding_window_inference

from monai_skelrec.streaming import Windows, stream_logits, window_starts


def network(dims=3, classes=4):
    torch.manual_seed(0)
    return (torch.nn.Conv3d if dims == 3 else torch.nn.Conv2d)(1, classes, 3, padding=1).requires_grad_(False)


def collect(image, net, windows, axis, region=None):
    pieces = [(begin, piece.clone()) for begin, piece in stream_logits(image, net, windows, axis=axis, region=region)]
    at = 0
    for begin, piece in pieces:  # in order, without gap or overlap
        assert begin == at
        at += piece.shape[1]
    assert at == image.shape[1 + axis]
    return torch.cat([piece for _, piece in pieces], dim=1).movedim(1, 1 + axis)


@pytest.mark.parametrize("shape", [(18, 13, 21), (5, 13, 21), (8, 8, 8), (3, 4, 5)])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("overlap, mode", [(0.5, "gaussian"), (0.25, "constant")])
def test_pieces_together_are_the_sliding_window(shape, axis, overlap, mode):
    image, net = torch.randn(1, *shape), network()
    whole = sliding_window_inference(image[None], (8, 6, 8), 2, net, overlap=overlap, mode=mode)[0]
    windows = Windows((8, 6, 8), overlap, batch_size=2, mode=mode)
    torch.testing.assert_close(collect(image, net, windows, axis), whole, atol=2e-6, rtol=1e-5)


def test_pictures_stream_too():
    image, net = torch.randn(1, 30, 17), network(2)
    whole = sliding_window_inference(image[None], (8, 8), 1, net, overlap=0.5, mode="gaussian")[0]
    torch.testing.assert_close(collect(image, net, Windows((8, 8)), 1), whole, atol=2e-6, rtol=1e-5)


def test_sigma_of_the_weights_counts():
    image, net = torch.randn(1, 12, 12, 12), network()
    options = {"overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.3}
    whole = sliding_window_inference(image[None], (8, 8, 8), 1, net, **options)[0]
    torch.testing.assert_close(collect(image, net, Windows((8, 8, 8), sigma_scale=0.3), 0), whole, atol=2e-6, rtol=1e-5)
    assert not torch.allclose(collect(image, net, Windows((8, 8, 8)), 0), whole, atol=1e-4)


def test_a_region_is_cut_out_of_the_whole_and_windows_elsewhere_are_not_run():
    image, net, windows = torch.randn(1, 16, 16, 40), network(), Windows((8, 8, 8))
    calls = []

    def counting(batch):
        calls.append(len(batch))
        return net(batch)

    whole = collect(image, counting, windows, 0)
    all_calls = sum(calls)
    calls.clear()
    part = collect(image, counting, windows, 0, region=[(0, 0), (2, 9), (11, 20)])
    torch.testing.assert_close(part, whole[:, :, 2:9, 11:20], atol=2e-6, rtol=1e-5)
    assert sum(calls) < all_calls / 2


def test_no_more_than_one_row_of_windows_is_held():
    image = torch.randn(1, 64, 8, 8)
    pieces = list(stream_logits(image, network(), Windows((8, 8, 8)), axis=0))
    assert len({piece.untyped_storage().data_ptr() for _, piece in pieces}) == 1
    assert pieces[0][1].untyped_storage().nbytes() == 4 * (4 * 8 * 8 * 8)


def test_batches_never_cross_a_row():
    sizes = []

    def counting(batch):
        sizes.append(len(batch))
        return network()(batch)

    list(stream_logits(torch.randn(1, 16, 8, 16), counting, Windows((8, 8, 8), batch_size=2), axis=0))
    assert sizes == [2, 1, 2, 1, 2, 1]  # 3 rows of 3 windows


def test_windows_of_a_small_image_begin_in_the_padding():
    assert window_starts((5, 20), Windows((8, 8))) == [[-1], [0, 4, 8, 12]]


def test_mixed_precision_rounds_and_is_summed_up_in_single():
    image, net = torch.randn(1, 8, 8, 8), network()
    plain, mixed = (collect(image, net, Windows((8, 8, 8), amp=amp), 0) for amp in (False, True))
    assert mixed.dtype == torch.float32 and not torch.equal(plain, mixed)
    torch.testing.assert_close(plain, mixed, atol=0.05, rtol=0.05)
