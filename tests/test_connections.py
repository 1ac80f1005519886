"""False branches and weakest links, counted by hand on lines of nine pixels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn.functional import one_hot

from monai_skelrec.connections import ConnectedTubesLoss, false_tube, weakest_link
from monai_skelrec.deep_supervision import TubeDeepSupervisionLoss
from monai_skelrec.handlers import WarmUp
from monai_skelrec.losses import DiceCESkeletonRecallLoss

CERTAIN = 50.0  # logit of a probability that is 1 to float precision


def lines(**rows: int) -> torch.Tensor:
    """Class indices, shape (1, 1, 9, 9): horizontal lines, one pixel thick, ``row3=2`` being class 2 in row 3."""
    label = torch.zeros(1, 1, 9, 9)
    for name, value in rows.items():
        label[:, :, int(name[3:])] = value
    return label


def logits_of(label: torch.Tensor, n_classes: int = 3) -> torch.Tensor:
    return CERTAIN * one_hot(label[:, 0].long(), n_classes).movedim(-1, 1).float()


LABEL = lines(row2=1)


# --- precision twin --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "predicted, tolerance, expected",
    [
        pytest.param(lines(row2=1), 1, 0.0, id="perfect"),
        pytest.param(lines(), 1, 0.0, id="nothing predicted"),
        pytest.param(lines(row2=1, row6=1), 1, 0.5, id="one line of two is false"),
        pytest.param(lines(row3=1), 1, 0.0, id="beside, within the tolerance"),
        pytest.param(lines(row3=1), 0, 1.0, id="beside, no tolerance"),
        pytest.param(lines(row2=1, row6=2), 1, 0.5, id="one class of two is false"),
        pytest.param(lines(row2=2), 1, 1.0, id="right place, wrong class"),
    ],
)
def test_share_of_false_tube_counted_by_hand(predicted, tolerance, expected):
    assert false_tube(logits_of(predicted), LABEL, tolerance=tolerance).item() == pytest.approx(expected, abs=1e-6)


def test_unsure_false_tube_costs_its_probability():
    input = logits_of(lines(row6=1), 2)
    input[:, 1, 6] = input[:, 0, 6] + torch.log(torch.tensor(3.0))  # probability 3/4
    assert false_tube(input, LABEL).item() == pytest.approx(0.75, abs=1e-6)


def test_wider_radius_sees_more_of_a_thick_branch():
    """Seven rows of which the label has the middle one: with radius 0 the centreline alone, which is true."""
    predicted = lines(**{f"row{row}": 1 for row in range(1, 8)})
    label = lines(row4=1)
    assert false_tube(logits_of(predicted), label, radius=0).item() == pytest.approx(0, abs=1e-6)
    assert false_tube(logits_of(predicted), label, radius=3).item() > 0.3


def test_false_tube_under_ignored_voxels_is_free():
    label = LABEL.clone()
    label[:, :, 5:] = 255
    assert false_tube(logits_of(lines(row2=1, row7=1)), label, ignore_index=255).item() == pytest.approx(0, abs=1e-6)


def test_overlapping_regions_have_a_tube_each():
    regions = torch.cat([lines(row2=1), lines(row2=1)], 1)
    found = torch.cat([lines(row2=1), lines(row2=1, row6=1)], 1)
    input = CERTAIN * (2 * found - 1)
    assert false_tube(input, regions, sigmoid=True).item() == pytest.approx(0.25, abs=1e-6)  # 0 and a half


def test_background_of_independent_channels_with_indices_has_no_tube():
    input = CERTAIN * (2 * one_hot(LABEL[:, 0].long(), 2).movedim(-1, 1).float() - 1)
    assert false_tube(input, LABEL, sigmoid=True).item() == pytest.approx(0, abs=1e-6)


# --- weakest link ----------------------------------------------------------------------------------------------------


def with_gap(classes: int = 2) -> torch.Tensor:
    """Class 1 along row 2 but for the pixel in the middle."""
    predicted = LABEL.clone()
    predicted[..., 2, 4] = 0
    return logits_of(predicted, classes)


def test_worst_point_of_each_window_counts():
    # two pixels at each end have no gap in their window of five, and are worst themselves: one miss of five
    assert weakest_link(with_gap(), LABEL, LABEL, window=5).item() == pytest.approx(1 / 5, abs=1e-6)
    # the gap and the six pixels that do not see it
    assert weakest_link(with_gap(), LABEL, LABEL, window=3).item() == pytest.approx(1 / 7, abs=1e-6)
    # every pixel for itself: recall
    assert weakest_link(with_gap(), LABEL, LABEL, window=1).item() == pytest.approx(1 / 9, abs=1e-6)


def test_gradient_is_at_the_gap_and_not_beside_it():
    input = torch.zeros(1, 2, 9, 9)
    input[:, 1, 2] = 1.0
    input[:, 1, 2, 4] = -1.0
    input.requires_grad_()
    weakest_link(input, LABEL, LABEL).backward()
    moved = (input.grad[0, 1] != 0).nonzero().tolist()
    assert moved == [[2, 0], [2, 1], [2, 4], [2, 7], [2, 8]]


def test_only_the_centreline_of_a_tube_counts():
    tube = lines(row1=1, row2=1, row3=1)
    input = logits_of(lines(row2=1), 2)  # the margin is missed, the centreline is not
    # of the tube two thirds are missed; of its centreline, which thinning bends at the ends, far less
    assert weakest_link(input, tube, tube).item() < 0.2


def test_classes_do_not_hide_each_others_gaps():
    """Class 2 is missed entirely, beside a gap of class 1, which stays the worst point of its own class."""
    label = lines(row2=1, row6=2)
    predicted = label.clone()
    predicted[..., 2, 4] = 0
    predicted[..., 6, :] = 0
    expected = (1 / 5 + 1) / 2
    assert weakest_link(logits_of(predicted), label, label).item() == pytest.approx(expected, abs=1e-6)
    multi_hot = one_hot(label[:, 0].long(), 3).movedim(-1, 1).float()
    assert weakest_link(logits_of(predicted), label, multi_hot).item() == pytest.approx(expected, abs=1e-6)


def test_ignored_gap_is_no_gap():
    label = LABEL.clone()
    label[..., 2, 4] = 255
    assert weakest_link(with_gap(), label, LABEL, ignore_index=255).item() == pytest.approx(0, abs=1e-6)


def test_lines_at_the_border_do_not_meet_around_it():
    """The right end of row 2 and the left end of row 3 are neighbours in memory only."""
    label = lines(row2=1)
    label[..., 3, :] = 0
    label[..., 2, :4] = 0
    label[..., 4, :4] = 1
    predicted = label.clone()
    predicted[..., 2, 8] = 0
    # row 2: cols 4, 5 and the miss; row 4: all four
    assert weakest_link(logits_of(predicted, 2), label, label).item() == pytest.approx(1 / 7, abs=1e-6)


def test_no_tube_costs_nothing_and_keeps_the_graph():
    input = torch.zeros(2, 2, 9, 9, requires_grad=True)
    nothing = torch.zeros(2, 1, 9, 9)
    (
        weakest_link(input, nothing, nothing)
        + false_tube(input - CERTAIN * torch.tensor([0.0, 1]).view(1, 2, 1, 1), nothing)
    ).backward()
    assert input.grad.abs().max() == 0


# --- both, beside a loss ---------------------------------------------------------------------------------------------


def connected(base=None, **options):
    return ConnectedTubesLoss(base or DiceCESkeletonRecallLoss(), **options)


def random_case(spatial=(9, 9), n_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2, n_classes, *spatial, generator=generator, dtype=torch.float64)
    label = torch.zeros(2, 1, *spatial)
    label[:, :, 2], label[:, :, 6] = 1, 2
    return input, torch.cat([label, label], 1)


def test_value_is_the_sum_of_the_terms():
    input, target = random_case()
    loss = connected(lambda_precision=0.5, lambda_link=2.0)
    value = loss(input, target)
    label, tube = target.split(1, 1)
    expected = DiceCESkeletonRecallLoss()(input, target)
    expected = expected + 0.5 * false_tube(input, label) + 2 * weakest_link(input, label, tube)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    assert set(loss.terms) == {"dice", "ce", "skeleton_recall", "false_tube", "weakest_link"}
    assert not any(term.requires_grad for term in loss.terms.values())


@pytest.mark.parametrize("spatial", [(9, 9), (8, 7, 6)])
def test_gradient_is_that_of_the_value(spatial):
    input, target = random_case(spatial, seed=1)
    torch.autograd.gradcheck(connected(), (input.requires_grad_(), target), fast_mode=True)


def test_zero_weights_and_warm_up_leave_the_loss_as_it_is():
    input, target = random_case()
    plain = DiceCESkeletonRecallLoss()(input, target)
    assert connected(lambda_precision=0, lambda_link=0)(input, target).item() == plain.item()
    warming = connected()
    warming.ramp = 0.0
    assert warming(input, target).item() == plain.item()
    assert set(warming.terms) == {"dice", "ce", "skeleton_recall"}


def test_ramp_is_a_factor_of_skeleton_recall():
    input, target = random_case()
    warming = DiceCESkeletonRecallLoss(lambda_skeleton=2.0)
    warming.ramp = 0.25
    assert warming(input, target).item() == DiceCESkeletonRecallLoss(lambda_skeleton=0.5)(input, target).item()


def test_terms_are_of_the_full_resolution_head():
    input, target = random_case((8, 8))
    heads = [input, input[:, :, ::2, ::2].contiguous()]
    loss = connected(TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss()))
    label, tube = target.split(1, 1)
    expected = loss.loss(heads, target) + false_tube(input, label) + weakest_link(input, label, tube)
    assert loss(heads, target).item() == pytest.approx(expected.item(), abs=1e-12)


def test_can_stand_within_deep_supervision_too():
    input, target = random_case((8, 8))
    loss = TubeDeepSupervisionLoss(connected())
    assert torch.isfinite(loss([input, input[:, :, ::2, ::2].contiguous()], target))


def test_half_precision_gives_float32_and_a_finite_gradient():
    input, target = random_case()
    half = input.to(torch.bfloat16).requires_grad_()
    value = connected()(half, target)
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(half.grad).all()
    assert value.item() == pytest.approx(connected()(half.detach().double(), target).item(), abs=1e-5)


def test_input_is_left_alone():
    input, target = random_case()
    before = input.clone(), target.clone()
    connected()(input, target)
    assert torch.equal(input, before[0]) and torch.equal(target, before[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lambda_precision": -1}, "lambda_precision must be at least 0, got -1"),
        ({"lambda_link": -1}, "lambda_link must be at least 0, got -1"),
        ({"radius": -1}, "radius must be at least 0, got -1"),
        ({"tolerance": -1}, "tolerance must be at least 0, got -1"),
        ({"window": 4}, "window must be an odd number of voxels from 1, got 4"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        connected(**options)


# --- warm-up ---------------------------------------------------------------------------------------------------------


def test_warm_up_follows_the_number_of_the_epoch():
    loss = TubeDeepSupervisionLoss(connected())
    handler, engine = WarmUp(loss, epochs=2), SimpleNamespace(state=SimpleNamespace(epoch=0))
    ramps = []
    for engine.state.epoch in (1, 2, 3, 2):  # a resumed run may begin anywhere
        handler(engine)
        ramps.append((loss.loss.ramp, loss.loss.loss.ramp))
    assert ramps == [(0, 0), (0, 0), (1, 1), (0, 0)]


def test_warm_up_of_nothing_is_refused():
    with pytest.raises(ValueError, match="DiceLoss has no term that could be warmed up; set warm_up to 0"):
        WarmUp(DiceLoss(), epochs=1)
    with pytest.raises(ValueError, match="a warm-up must take at least 0 epochs, got -1"):
        WarmUp(connected(), epochs=-1)
    WarmUp(DiceLoss(), epochs=0)
