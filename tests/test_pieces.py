"""Gaps and false pieces, counted by hand on lines of nine pixels, and by scipy on random ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch.nn.functional import one_hot

from monai_skelrec import DiceCESkeletonRecallLoss, PieceErrorLoss, TubeDeepSupervisionLoss, tubed_skeleton
from monai_skelrec.pieces import piece_error

CERTAIN = 50.0  # logit of a probability that is 1 to float precision


def lines(**rows: int) -> torch.Tensor:
    """Class indices, shape (1, 1, 9, 9): horizontal lines, one pixel thick, ``row3=2`` being class 2 in row 3."""
    label = torch.zeros(1, 1, 9, 9)
    for name, value in rows.items():
        label[:, :, int(name[3:])] = value
    return label


def at(label: torch.Tensor, **values: int) -> torch.Tensor:
    """A copy with single pixels changed: ``r2c4=0``."""
    label = label.clone()
    for name, value in values.items():
        row, column = map(int, name[1:].split("c"))
        label[..., row, column] = value
    return label


def logits_of(label: torch.Tensor, n_classes: int = 3) -> torch.Tensor:
    return CERTAIN * one_hot(label[:, 0].long(), n_classes).movedim(-1, 1).float()


LABEL = lines(row2=1)


# --- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "predicted, expected",
    [
        pytest.param(LABEL, 0, id="perfect"),
        pytest.param(lines(), 1, id="nothing predicted: one gap and nothing else"),
        pytest.param(at(LABEL, r2c4=0), 1 / 3, id="a gap of one pixel between two pieces"),
        pytest.param(at(LABEL, r2c3=0, r2c4=0, r2c5=0), 1 / 3, id="a gap of three counts as much"),
        pytest.param(at(LABEL, r2c2=0, r2c6=0), 2 / 5, id="two gaps, three pieces"),
        pytest.param(at(LABEL, r2c8=0), 1 / 2, id="an end that is missed"),
        pytest.param(at(LABEL, r7c4=1), 1 / 2, id="a speck far away"),
        pytest.param(lines(row2=1, row7=1), 1 / 2, id="a false line counts as much"),
        pytest.param(at(LABEL, r7c1=1, r8c2=1, r7c6=1), 2 / 3, id="diagonal neighbours are one piece"),
        pytest.param(at(LABEL, r3c4=1), 0, id="touches the label"),
        pytest.param(at(LABEL, r3c4=1, r4c4=1, r5c4=1, r6c4=1), 0, id="a spur as long as the tolerance"),
        pytest.param(at(LABEL, r3c4=1, r4c4=1, r5c4=1, r6c4=1, r7c4=1), 1 / 2, id="a longer one"),
        pytest.param(lines(row3=1), 1, id="near, but not touching the label: a gap and a false piece, nothing found"),
        pytest.param(lines(row2=1, row7=2), 1 / 2, id="a class that is not there, and one that is right"),
        pytest.param(lines(row2=2), 1, id="right place, wrong class"),
    ],
)
def test_share_of_wrong_pieces_counted_by_hand(predicted, expected):
    assert piece_error(logits_of(predicted), LABEL, LABEL).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "predicted, missed, false",
    [
        pytest.param(LABEL, 0, 0, id="perfect"),
        pytest.param(lines(), 1, 0, id="nothing predicted"),
        pytest.param(at(LABEL, r2c4=0), 1 / 3, 0, id="a gap between two pieces"),
        pytest.param(at(LABEL, r7c4=1), 0, 1 / 2, id="a speck, one piece found"),
        pytest.param(at(LABEL, r2c4=0, r7c0=1, r7c2=1, r7c4=1), 1 / 3, 3 / 5, id="specks do not drown a gap"),
        pytest.param(lines(row3=1), 1, 1, id="nothing found, and a false piece"),
    ],
)
def test_balanced_adds_the_share_that_is_missed_and_the_share_that_is_false(predicted, missed, false):
    value = piece_error(logits_of(predicted), LABEL, LABEL, balanced=True).item()
    assert value == pytest.approx(missed + false, abs=1e-6)


def test_classes_are_averaged_each_with_pieces_of_its_own():
    label = lines(row2=1, row6=2)
    predicted = at(label, r2c4=0, r6c8=0)
    assert piece_error(logits_of(predicted), label, label).item() == pytest.approx((1 / 3 + 1 / 2) / 2, abs=1e-6)


def test_items_are_averaged_and_one_without_pieces_counts():
    label = torch.cat([LABEL, lines()])
    assert piece_error(logits_of(torch.zeros_like(label)), label, label).item() == pytest.approx(1 / 2, abs=1e-6)


def test_a_piece_costs_its_mean_probability_and_gets_its_gradient_shared_out():
    input = torch.zeros(1, 2, 9, 9)
    input[:, 1] = -CERTAIN
    input[:, 1, 2] = CERTAIN
    input[:, 1, 2, 3:5] = -np.log(3)  # two pixels of probability 1/4
    input[:, 1, 7, 0] = np.log(4)  # one of 4/5
    input.requires_grad_()
    value = piece_error(input, LABEL, LABEL)
    assert value.item() == pytest.approx((3 / 4 + 4 / 5) / 4, abs=1e-6)  # a gap, a speck, two pieces that are found
    value.backward()
    moved = input.grad[0, 1].nonzero().tolist()
    assert moved == [[2, 3], [2, 4], [7, 0]]
    assert input.grad[0, 1, 2, 3].item() == pytest.approx(-(1 / 4 * 3 / 4) / 2 / 4, abs=1e-6)
    assert input.grad[0, 1, 7, 0].item() == pytest.approx(4 / 5 * 1 / 5 / 4, abs=1e-6)


def test_margin_counts_pieces_that_are_only_just_right():
    input = torch.zeros(1, 2, 9, 9)
    input[:, 1] = -CERTAIN
    input[:, 1, 2] = CERTAIN
    input[:, 1, 2, 4] = np.log(0.55 / 0.45)  # found, barely
    input[:, 1, 7, 0] = np.log(0.45 / 0.55)  # not predicted, barely
    assert piece_error(input, LABEL, LABEL, margin=0).item() == pytest.approx(0, abs=1e-6)
    assert piece_error(input, LABEL, LABEL, margin=0.04).item() == pytest.approx(0, abs=1e-6)
    assert piece_error(input, LABEL, LABEL).item() == pytest.approx((0.45 + 0.45) / 4, abs=1e-6)


def test_a_speck_that_hangs_on_a_faint_bridge_is_alone():
    input = torch.zeros(1, 2, 9, 9)
    input[:, 1] = -CERTAIN
    input[:, 1, 2] = CERTAIN
    input[:, 1, 3, 4] = np.log(0.3 / 0.7)
    input[:, 1, 4, 4] = np.log(0.6 / 0.4)
    assert piece_error(input, LABEL, LABEL).item() == pytest.approx(0.6 / 2, abs=1e-6)
    input[:, 1, 3, 4] = np.log(0.51 / 0.49)
    assert piece_error(input, LABEL, LABEL).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("tolerance, expected", [(0, 1 / 2), (1, 1 / 2), (2, 0)])
def test_tolerance_is_how_far_a_prediction_may_reach_from_its_label(tolerance, expected):
    predicted = at(LABEL, r3c4=1, r4c4=1)
    assert piece_error(logits_of(predicted), LABEL, LABEL, tolerance=tolerance).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_centreline_of_a_tube_counts_not_its_rim():
    tube = lines(row1=1, row2=1, row3=1)
    # thinning leaves the middle line, bent at its end; of the rim most is missed
    predicted = at(LABEL, r1c7=1)
    assert piece_error(logits_of(predicted), tube, tube).item() == pytest.approx(0, abs=1e-6)


def test_multi_hot_tube_is_the_same():
    label = lines(row2=1, row6=2)
    tube = one_hot(label[:, 0].long(), 3).movedim(-1, 1).float()
    input = logits_of(at(label, r2c4=0))
    assert piece_error(input, label, tube).item() == piece_error(input, label, label).item() == pytest.approx(1 / 6)


def test_overlapping_regions_have_pieces_each():
    regions = torch.cat([LABEL, LABEL], 1)
    found = torch.cat([LABEL, lines(row2=1, row7=1)], 1)
    assert piece_error(CERTAIN * (2 * found - 1), regions, regions, sigmoid=True).item() == pytest.approx(1 / 4)


def test_one_region():
    assert piece_error(CERTAIN * (2 * at(LABEL, r2c4=0) - 1), LABEL, LABEL, sigmoid=True).item() == pytest.approx(1 / 3)


def test_background_of_independent_channels_with_indices_has_no_pieces():
    input = CERTAIN * (2 * one_hot(LABEL[:, 0].long(), 2).movedim(-1, 1).float() - 1)
    assert piece_error(input, LABEL, LABEL, sigmoid=True).item() == pytest.approx(0, abs=1e-6)


def test_ignored_voxels_have_no_pieces():
    label = LABEL.clone()
    label[..., 6:, :] = 255
    label[..., 2, 4] = 255
    predicted = at(LABEL, r2c4=0, r8c8=1)
    value = piece_error(logits_of(predicted), label, LABEL, ignore_index=255)
    assert value.item() == pytest.approx(0, abs=1e-6)


def test_index_as_large_as_its_dtype_is_a_class():
    label = LABEL.to(torch.uint8) * 255
    assert piece_error(logits_of(label, 256), label, label).item() == pytest.approx(0, abs=1e-6)


def test_no_piece_costs_nothing_and_keeps_the_graph():
    input = logits_of(lines()).requires_grad_()
    piece_error(input, lines(), lines()).backward()
    assert input.grad.abs().max() == 0


# --- oracle ----------------------------------------------------------------------------------------------------------


def by_scipy(
    p: np.ndarray, label: np.ndarray, tube: np.ndarray, tolerance: int, margin: float, balanced: bool = False
) -> float:
    """One item; ``p`` of shape (N, ...). Class after class, with dilations of whole masks."""
    full, values = np.ones((3,) * label.ndim), []
    likeliest = p[1:].argmax(0) + 1
    centerline = tubed_skeleton(tube, 0)
    for c in range(1, len(p)):
        predicted = (likeliest == c) & (p[c] > 0.5 - margin)
        false = predicted & ~ndimage.binary_dilation(label == c, iterations=tolerance)
        for level in (0.5 - margin, 0.5):
            components, n = ndimage.label(predicted & (p[c] > level), full)
            untouched = [k for k in range(1, n + 1) if not (label[components == k] == c).any()]
            false |= np.isin(components, untouched)
        false, n_false = ndimage.label(false, full)
        gap = (centerline == c) & (p[c] < 0.5 + margin)
        gaps, n_gaps = ndimage.label(gap, full)
        n_found = ndimage.label((centerline == c) & ~gap, full)[1]
        too_much = sum(p[c][false == k].mean() for k in range(1, n_false + 1))
        missed = sum(1 - p[c][gaps == k].mean() for k in range(1, n_gaps + 1))
        if balanced and n_false + n_gaps + n_found:
            values.append(too_much / max(1, n_false + n_found) + missed / max(1, n_gaps + n_found))
        elif n_false + n_gaps + n_found:
            values.append((too_much + missed) / (n_false + n_gaps + n_found))
    return float(np.mean(values)) if values else 0.0


@pytest.mark.parametrize("spatial", [(40, 31), (18, 17, 13)])
@pytest.mark.parametrize("n_classes, tolerance, margin", [(2, 2, 0.1), (4, 1, 0.0), (5, 3, 0.3)])
def test_equals_a_plain_count_with_scipy(spatial, n_classes, tolerance, margin):
    rng = np.random.default_rng(len(spatial) * n_classes)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, n_classes, *spatial)), (0, 0, *[1.3] * len(spatial)))
    smooth /= smooth.std()
    smooth[:, 0] += 1.2
    label = smooth.argmax(1).astype(np.uint8)
    tube = np.stack([tubed_skeleton(item, 1) for item in label])
    noise = ndimage.gaussian_filter(rng.normal(size=smooth.shape), (0, 0, *[1.0] * len(spatial)))
    input = torch.from_numpy(2 * smooth + noise / noise.std())
    target = [torch.from_numpy(each[:, None].astype(np.int64)) for each in (label, tube)]
    p = input.softmax(1).numpy()
    expected = np.mean([by_scipy(*each, tolerance, margin) for each in zip(p, label, tube, strict=True)])
    assert 0.05 < expected < 0.95
    assert piece_error(input, *target, tolerance, margin).item() == pytest.approx(expected, abs=1e-9)
    halves = np.mean([by_scipy(*each, tolerance, margin, True) for each in zip(p, label, tube, strict=True)])
    assert piece_error(input, *target, tolerance, margin, balanced=True).item() == pytest.approx(halves, abs=1e-9)
    assert halves > expected
    # however label and tube lie in memory
    turned = [each.movedim(2, -1).contiguous().movedim(-1, 2) for each in target]
    assert not turned[0].is_contiguous()
    assert piece_error(input, *turned, tolerance, margin).item() == pytest.approx(expected, abs=1e-9)
    first = [torch.from_numpy(np.asfortranarray(each[:1].numpy())) for each in target]
    alone = by_scipy(p[0], label[0], tube[0], tolerance, margin)
    assert piece_error(input[:1], *first, tolerance, margin).item() == pytest.approx(alone, abs=1e-9)


# --- beside a loss ---------------------------------------------------------------------------------------------------


def random_case(spatial=(9, 9), n_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2, n_classes, *spatial, generator=generator, dtype=torch.float64)
    label = torch.zeros(2, 1, *spatial)
    label[:, :, 2], label[:, :, 6] = 1, 2
    return input, torch.cat([label, label], 1)


def pieces(base=None, **options):
    return PieceErrorLoss(base or DiceCESkeletonRecallLoss(), **options)


def test_value_is_the_sum_of_the_terms():
    input, target = random_case()
    loss = pieces(lambda_pieces=0.5, tolerance=1, margin=0.2)
    expected = DiceCESkeletonRecallLoss()(input, target) + 0.5 * piece_error(input, *target.split(1, 1), 1, 0.2)
    assert loss(input, target).item() == pytest.approx(expected.item(), abs=1e-12)
    assert set(loss.terms) == {"dice", "ce", "skeleton_recall", "piece_error"}
    assert not any(term.requires_grad for term in loss.terms.values())


@pytest.mark.parametrize("spatial", [(9, 9), (8, 7, 6)])
def test_gradient_is_that_of_the_value(spatial):
    input, target = random_case(spatial, seed=1)
    torch.autograd.gradcheck(pieces(), (input.requires_grad_(), target), fast_mode=True)


def test_balanced_term_is_weighted_by_what_is_seen_of_the_lines_which_is_no_way_down():
    input, target = random_case()
    input.requires_grad_()
    loss = pieces(balanced=True, lambda_pieces=0.5)
    error = piece_error(input, *target.split(1, 1), balanced=True)
    p = input.detach().softmax(1)
    weight = 0.5 * torch.cat([p[:, 1, 2], p[:, 2, 6]]).mean().item() ** 2
    value, within = loss(input, target), loss.loss(input, target)
    assert value.item() == pytest.approx((within + weight * error).item(), abs=1e-12)
    assert loss.terms["piece_error"].item() == pytest.approx(error.item(), abs=1e-12)
    whole, base, of_error = (torch.autograd.grad(each, input)[0] for each in (value, within, error))
    torch.testing.assert_close(whole, base + weight * of_error)


def test_balanced_term_steps_back_where_nothing_is_seen_and_not_where_there_is_nothing_to_see():
    blind, target = logits_of(lines(row7=1)), torch.cat([LABEL, LABEL], 1)
    loss = pieces(balanced=True)
    assert (loss(blind, target) - loss.loss(blind, target)).item() == pytest.approx(0, abs=1e-6)
    assert loss.terms["piece_error"].item() == pytest.approx(2)
    empty = torch.zeros_like(target)
    assert (loss(blind, empty) - loss.loss(blind, empty)).item() == pytest.approx(1, abs=1e-5)


def test_regions_of_the_wrapped_loss():
    input, target = random_case(n_classes=2)
    regions = torch.cat([target[:, :1] == 1, target[:, :1] == 2], 1).float()
    loss = pieces(DiceCESkeletonRecallLoss(sigmoid=True, include_background=True), sigmoid=True)
    both = torch.cat([regions, regions], 1)
    expected = loss.loss(input, both) + piece_error(input, regions, regions, sigmoid=True)
    assert loss(input, both).item() == pytest.approx(expected.item(), abs=1e-12)


def test_ignored_voxels_of_the_wrapped_loss():
    input, target = random_case()
    target[:, 0, 4:] = 255
    loss = pieces(DiceCESkeletonRecallLoss(ignore_index=255), ignore_index=255)
    loss(input, target)
    expected = piece_error(input, *target.split(1, 1), ignore_index=255)
    assert loss.terms["piece_error"].item() == expected.item() != piece_error(input, *target.split(1, 1)).item()


def test_no_weight_and_warm_up_leave_the_loss_as_it_is():
    input, target = random_case()
    plain = DiceCESkeletonRecallLoss()(input, target).item()
    assert pieces(lambda_pieces=0)(input, target).item() == plain
    warming = pieces()
    warming.ramp = 0.0
    assert warming(input, target).item() == plain and "piece_error" not in warming.terms


def test_term_is_of_the_full_resolution_head():
    input, target = random_case((8, 8))
    heads = [input, input[:, :, ::2, ::2].contiguous()]
    loss = pieces(TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss()))
    expected = loss.loss(heads, target) + piece_error(input, *target.split(1, 1))
    assert loss(heads, target).item() == pytest.approx(expected.item(), abs=1e-12)


def test_half_precision_gives_float32_and_a_finite_gradient():
    input, target = random_case()
    half = input.to(torch.bfloat16).requires_grad_()
    value = pieces()(half, target)
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(half.grad).all()
    assert value.item() == pytest.approx(pieces()(half.detach().double(), target).item(), abs=1e-5)


def test_meta_tensors_and_integer_labels_are_taken_and_left_alone():
    input, target = random_case()
    before = input.clone(), target.clone()
    value = pieces()(MetaTensor(input), MetaTensor(target.long()))
    assert value.item() == pieces()(input, target).item() and not isinstance(value, MetaTensor)
    assert torch.equal(input, before[0]) and torch.equal(target, before[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lambda_pieces": -1}, "lambda_pieces must be at least 0, got -1"),
        ({"tolerance": -1}, "tolerance must be a whole number of voxels, at least 0, got -1"),
        ({"tolerance": 2.5}, "tolerance must be a whole number of voxels, at least 0, got 2.5"),
        ({"warm_up": -1}, "warm_up must be at least 0, got -1"),
        ({"margin": 0.5}, "margin must be at least 0 and below 0.5, got 0.5"),
        ({"margin": -0.1}, "margin must be at least 0 and below 0.5, got -0.1"),
        ({"sigmoid": True}, "sigmoid must be that of DiceCESkeletonRecallLoss, False, got True"),
        ({"ignore_index": 255}, "ignore_index must be that of DiceCESkeletonRecallLoss, None, got 255"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pieces(**options)


# --- GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    input, target = random_case((16, 15, 14))
    on_gpu = pieces()(input.cuda(), target.cuda())
    assert on_gpu.item() == pytest.approx(pieces()(input, target).item(), abs=1e-9)
