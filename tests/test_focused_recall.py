"""Recall that turns to gaps and small branches: values by hand on lines of nine pixels, and where the gradient is."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from torch.nn.functional import one_hot

from monai_skelrec import (
    DiceCESkeletonRecallLoss,
    FocusedRecallLoss,
    PieceErrorLoss,
    SkeletonRecallLoss,
    TubeDeepSupervisionLoss,
)
from monai_skelrec.focused_recall import focused_recall
from monai_skelrec.handlers import WarmUp

ALL = [dict(over=over, gamma=gamma, log=log) for over in ("class", "branch", "voxel") for gamma in (0, 0.5, 2)
       for log in (False, True)]  # fmt: skip


def lines(**rows: int) -> torch.Tensor:
    """Shape (1, 1, 9, 9): horizontal lines one pixel thick, ``row3=2`` being value 2 in row 3."""
    label = torch.zeros(1, 1, 9, 9)
    for name, value in rows.items():
        label[:, :, int(name[3:])] = value
    return label


def logits_of(p: torch.Tensor) -> torch.Tensor:
    """Two classes, the second of probability ``p``, shape (1, 1, 9, 9)."""
    return torch.cat([torch.log1p(-p), torch.log(p)], 1)


# two branches of one class: nine pixels that are found with 3/4, three with 1/4
TUBE = lines(row2=1)
TUBE[..., 6, :3] = 1
BRANCHES = TUBE.clone()
BRANCHES[..., 6, :3] = 2
P = torch.full((1, 1, 9, 9), 0.75, dtype=torch.float64)
P[..., 6, :] = 0.25


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, 1 - (9 * 0.75 + 3 * 0.25) / 12),
        ({"log": True}, -math.log((9 * 0.75 + 3 * 0.25) / 12)),
        ({"gamma": 2}, (1 - (9 * 0.75 + 3 * 0.25) / 12) ** 3),
        ({"over": "branch"}, (0.25 + 0.75) / 2),
        ({"over": "branch", "log": True}, -(math.log(0.75) + math.log(0.25)) / 2),
        ({"over": "branch", "gamma": 1}, (0.25**2 + 0.75**2) / 2),
        ({"over": "voxel"}, 1 - (9 * 0.75 + 3 * 0.25) / 12),
        ({"over": "voxel", "log": True}, -(9 * math.log(0.75) + 3 * math.log(0.25)) / 12),
        ({"over": "voxel", "gamma": 2}, (9 * 0.25**3 + 3 * 0.75**3) / 12),
        (
            {"over": "voxel", "gamma": 2, "log": True},
            -(9 * 0.25**2 * math.log(0.75) + 3 * 0.75**2 * math.log(0.25)) / 12,
        ),
    ],
    ids=str,
)
def test_value_counted_by_hand(options, expected):
    assert focused_recall(logits_of(P), TUBE, TUBE, BRANCHES, **options).item() == pytest.approx(expected, abs=1e-12)


def random_case(spatial=(8, 8), n_classes=3, seed=0):
    """Logits, label, tube and branches of two items; the second lacks the last class."""
    generator = torch.Generator().manual_seed(seed)
    input = 2 * torch.randn(2, n_classes, *spatial, generator=generator, dtype=torch.float64)
    label = torch.zeros(2, 1, *spatial)
    label[:, :, 2], label[0, :, 6] = 1, n_classes - 1
    branches = label.clone()
    branches[:, :, 2, 5:] = 3
    return input, label, label.clone(), branches


@pytest.mark.parametrize("over", ["class", "voxel"])
def test_without_gamma_and_logarithm_it_is_skeleton_recall(over):
    input, label, tube, _ = random_case()
    plain = SkeletonRecallLoss(to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0)
    given, wanted = (input.clone().requires_grad_() for _ in range(2))
    value, expected = focused_recall(given, label, tube, over=over), plain(wanted, tube)
    (value.backward(), expected.backward())
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(given.grad, wanted.grad, rtol=0, atol=1e-12)


def test_logarithm_over_classes_is_that_of_their_recall():
    input, label, tube, _ = random_case()
    missed = SkeletonRecallLoss(to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0, reduction="none")(input, tube)
    logs = -torch.log(1 - missed[:, :, 0, 0])  # a class without tube, missed by 0, adds 0
    expected = (logs[0].mean() + logs[1, 0]) / 2
    assert focused_recall(input, label, tube, log=True).item() == pytest.approx(expected.item(), abs=1e-12)


def test_logarithm_over_voxels_is_cross_entropy_on_the_tube():
    input, label, tube, _ = random_case(n_classes=2)
    where = torch.where(tube > 0, 1, -100)[:, 0]
    expected = torch.nn.functional.cross_entropy(input, where, reduction="none").sum((1, 2)) / (where == 1).sum((1, 2))
    value = focused_recall(input, label, tube, over="voxel", log=True)
    assert value.item() == pytest.approx(expected.mean().item(), abs=1e-12)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_forms_of_the_target_agree(options):
    input, label, tube, branches = random_case()
    value = focused_recall(input, label, tube, branches, **options)
    multi_hot = one_hot(tube[:, 0].long(), 3).movedim(-1, 1).float()
    assert focused_recall(input, label, multi_hot, branches * multi_hot, **options).item() == pytest.approx(
        value.item(), abs=1e-12
    )
    # two independent regions are two binary tasks
    x, regions, numbers = input[:, 1:], multi_hot[:, 1:], (branches * multi_hot)[:, 1:]
    value = focused_recall(x, regions, regions, numbers, sigmoid=True, **options)
    by_item = [
        [
            focused_recall(x[b : b + 1, c : c + 1], *[t[b : b + 1, c : c + 1] for t in (regions, regions, numbers)],
                           sigmoid=True, **options)
            for c in range(2) if regions[b, c].any()
        ]
        for b in range(2)
    ]  # fmt: skip
    assert value.item() == pytest.approx(sum(sum(one) / len(one) for one in by_item).item() / 2, abs=1e-12)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_perfect_is_0_and_worse_is_more(options):
    _, label, tube, branches = random_case()
    perfect = 60.0 * (2 * one_hot(tube[:, 0].long(), 3).movedim(-1, 1).double() - 1)
    values = [focused_recall(scale * perfect, label, tube, branches, **options).item() for scale in (1, 0.01, 0, -0.01)]
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values == sorted(values) and values[3] > values[2] > values[1] > values[0]


def test_unit_under_ignored_voxels_does_not_count():
    label = TUBE.clone()
    label[..., 6, :] = 255
    value = focused_recall(logits_of(P), label, TUBE, BRANCHES, over="branch", ignore_index=255)
    assert value.item() == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_nothing_to_recall_costs_nothing_and_keeps_the_graph(options):
    input = torch.zeros(2, 2, 9, 9, requires_grad=True)
    nothing = torch.zeros(2, 1, 9, 9)
    value = focused_recall(input, nothing, nothing, nothing, **options)
    value.backward()
    assert value.item() == 0 and input.grad.abs().max() == 0


# --- gradients -------------------------------------------------------------------------------------------------------


def force(input, **options):
    """How strongly the probability of class 1 is drawn up at each pixel: minus the gradient by its logit."""
    input = input.clone().requires_grad_()
    focused_recall(input, TUBE, TUBE, BRANCHES, **options).backward()
    return -input.grad[0, 1]


def gap() -> torch.Tensor:
    """The long branch is found with 0.9, but for the pixel in its middle, found with 0.1; so is the short one."""
    p = torch.full((1, 1, 9, 9), 0.9, dtype=torch.float64)
    p[..., 2, 4] = 0.1
    return logits_of(p)


def test_plain_recall_draws_alike_at_a_gap_and_beside_it():
    drawn = force(gap())
    # p (1 - p) is the same for 0.1 and 0.9
    assert drawn[2, 4].item() == pytest.approx(drawn[2, 0].item(), abs=1e-12)


@pytest.mark.parametrize(
    "options, ratio",
    [
        # by p: (1 + gamma) (1 - p)^gamma, and 1 / p
        pytest.param({"gamma": 1}, 9, id="focal"),
        pytest.param({"gamma": 2}, 81, id="more focal"),
        pytest.param({"log": True}, 9, id="logarithm"),
    ],
)
def test_focal_and_logarithm_draw_harder_at_a_gap(options, ratio):
    drawn = force(gap(), over="voxel", **options)
    assert (drawn[2, 4] / drawn[2, 0]).item() == pytest.approx(ratio, rel=1e-6)
    assert (drawn[TUBE[0, 0] == 0] == 0).all()


def test_voxel_of_a_short_branch_is_drawn_harder_than_one_of_a_long_branch():
    drawn = force(torch.zeros(1, 2, 9, 9), over="branch")
    assert (drawn[6, 0] / drawn[2, 0]).item() == pytest.approx(9 / 3, rel=1e-6)
    # each branch is drawn as a whole with the same force
    assert drawn[6].sum().item() == pytest.approx(drawn[2].sum().item(), rel=1e-6)
    drawn = force(torch.zeros(1, 2, 9, 9))
    assert drawn[6, 0].item() == pytest.approx(drawn[2, 0].item(), rel=1e-6)


@pytest.mark.parametrize("options", [{"log": True}, {"gamma": 1}], ids=str)
def test_missed_branch_is_drawn_harder_than_a_found_one(options):
    even, turned = (force(logits_of(P), over="branch", **each) for each in ({}, options))
    # p (1 - p) and size are the same for both; by recall: 1/r or 2 (1 - r)
    assert (even[6, 0] / even[2, 0]).item() == pytest.approx(3, rel=1e-6)
    assert (turned[6, 0] / turned[2, 0]).item() == pytest.approx(3 * 3, rel=1e-6)


def test_logarithm_turns_to_the_class_that_is_missed():
    input = torch.zeros(1, 3, 9, 9)
    input[:, 1, 2], input[:, 2, 6] = 2.0, -2.0
    input.requires_grad_()
    label = lines(row2=1, row6=2)
    by_recall = []
    for log in (False, True):
        (grad,) = torch.autograd.grad(focused_recall(input, label, label, log=log), input)
        by_recall.append((grad[0, 2, 6, 0] / grad[0, 1, 2, 0]).item())
    r = torch.softmax(input.detach(), 1)
    assert by_recall[1] / by_recall[0] == pytest.approx((r[0, 1, 2, 0] / r[0, 2, 6, 0]).item(), rel=1e-5)


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("spatial", [(9, 9), (8, 7, 6)], ids=["2D", "3D"])
@pytest.mark.parametrize("options", ALL, ids=str)
def test_gradient_is_that_of_the_value(spatial, sigmoid, options):
    input, label, tube, branches = random_case(spatial, seed=1)

    def value(x):
        return focused_recall(x, label, tube, branches, sigmoid=sigmoid, **options)

    assert torch.autograd.gradcheck(value, input.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("extreme", [1000.0, -1000.0], ids=["found", "missed"])
@pytest.mark.parametrize("options", ALL, ids=str)
def test_certain_logits_give_finite_values_and_gradients(extreme, options):
    for dtype in (torch.float16, torch.float32, torch.float64):
        input = torch.stack([torch.full((9, 9), -extreme), torch.full((9, 9), extreme)])[None].to(dtype)
        input.requires_grad_()
        value = focused_recall(input, TUBE, TUBE, BRANCHES, **options)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(input.grad).all()
    if options["log"] and extreme < 0:
        assert input.grad[0, 1].sum().item() <= -0.99  # draws, where a probability of 0 stops every other loss


# --- beside a loss ---------------------------------------------------------------------------------------------------

PLAIN = {"lambda_skeleton": 0.0}


def focused(base=None, **options):
    return FocusedRecallLoss(base or DiceCESkeletonRecallLoss(**PLAIN), **options)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_value_is_the_sum_of_the_terms(options):
    input, label, tube, branches = random_case()
    loss = focused(lambda_recall=0.5, **options)
    stacked = [label, tube, branches] if options["over"] == "branch" else [label, tube]
    value = loss(input, torch.cat(stacked, 1))
    expected = DiceCESkeletonRecallLoss(**PLAIN)(input, torch.cat([label, tube], 1))
    term = focused_recall(input, label, tube, branches, **options)
    assert value.item() == pytest.approx((expected + 0.5 * term).item(), abs=1e-12)
    assert set(loss.terms) == {"dice", "ce", "skeleton_recall", "focused_recall"}
    assert loss.terms["focused_recall"].item() == pytest.approx(term.item(), abs=1e-12)
    assert not loss.terms["focused_recall"].requires_grad


def test_stands_in_the_place_of_skeleton_recall():
    """Plain, over all heads, it is the compound loss with its own recall, but for smoothing and pooling."""
    input, label, tube, _ = random_case()
    target = torch.cat([label, tube], 1)
    expected = DiceCESkeletonRecallLoss()(input, target).item()
    assert focused()(input, target).item() == pytest.approx(expected, abs=1e-5)


def test_every_form_of_the_target_is_taken_apart():
    input, label, tube, branches = random_case()
    index = focused(over="branch")(input, torch.cat([label, tube, branches], 1)).item()
    multi_hot = one_hot(tube[:, 0].long(), 3).movedim(-1, 1).float()
    mixed = torch.cat([label, multi_hot, branches * multi_hot], 1)
    assert focused(over="branch")(input, mixed).item() == pytest.approx(index, abs=1e-12)
    base = DiceCESkeletonRecallLoss(include_background=True, sigmoid=True, **PLAIN)
    x, regions, numbers = input[:, 1:], multi_hot[:, 1:], (branches * multi_hot)[:, 1:]
    loss = focused(base, over="branch", sigmoid=True)
    term = focused_recall(x, regions, regions, numbers, over="branch", sigmoid=True)
    value = loss(x, torch.cat([regions, regions, numbers], 1))
    assert value.item() == pytest.approx((base(x, torch.cat([regions, regions], 1)) + term).item(), abs=1e-12)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_coarser_heads_are_read_at_the_blocks_of_the_tube(options):
    """Of equal resolution after repeating each block's logits; weights 2/3 and 1/3."""
    input, label, tube, branches = random_case()
    coarse = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    repeated = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    loss = focused(TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss(**PLAIN)), **options)
    stacked = [label, tube, branches] if options["over"] == "branch" else [label, tube]
    terms = [focused_recall(head, label, tube, branches, **options) for head in (input, repeated)]
    expected = loss.loss([input, coarse], torch.cat([label, tube], 1)) + 2 / 3 * terms[0] + 1 / 3 * terms[1]
    assert loss([input, coarse], torch.cat(stacked, 1)).item() == pytest.approx(expected.item(), abs=1e-12)
    assert loss.terms["focused_recall"].item() == pytest.approx(terms[0].item(), abs=1e-12)


def test_can_stand_within_deep_supervision_unless_it_needs_branches():
    input, label, tube, _ = random_case()
    heads = [input, input[:, :, ::2, ::2].contiguous()]
    assert torch.isfinite(TubeDeepSupervisionLoss(focused(log=True))(heads, torch.cat([label, tube], 1)))
    with pytest.raises(ValueError, match="put FocusedRecallLoss around TubeDeepSupervisionLoss, not into it"):
        TubeDeepSupervisionLoss(focused(over="branch"))


def test_stands_around_other_terms():
    input, label, tube, branches = random_case()
    loss = focused(PieceErrorLoss(DiceCESkeletonRecallLoss(**PLAIN)), over="branch")
    loss(input, torch.cat([label, tube, branches], 1))
    assert {"focused_recall", "piece_error"} < set(loss.terms)


def test_weight_0_and_warm_up_leave_the_loss_as_it_is():
    input, label, tube, _ = random_case()
    target = torch.cat([label, tube], 1)
    plain = DiceCESkeletonRecallLoss(**PLAIN)(input, target).item()
    assert focused(lambda_recall=0)(input, target).item() == plain
    warming = focused()
    handler = WarmUp(TubeDeepSupervisionLoss(warming), epochs=1)
    assert [id(each) for each in handler.losses] == [id(warming), id(warming.loss)]
    warming.ramp = 0.0
    assert warming(input, target).item() == plain and "focused_recall" not in warming.terms
    warming.ramp = 0.5
    assert warming(input, target).item() == pytest.approx(focused(lambda_recall=0.5)(input, target).item(), abs=1e-12)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_half_precision_gives_float32_and_a_finite_gradient(options):
    input, label, tube, branches = random_case()
    target = torch.cat([label, tube, branches] if options["over"] == "branch" else [label, tube], 1)
    half = input.to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu"):
        value = focused(**options)(half, target)
    (1024 * value).backward()
    assert value.dtype == torch.float32 and torch.isfinite(half.grad).all()
    assert value.item() == pytest.approx(focused(**options)(half.detach().double(), target).item(), abs=1e-5)


def test_input_is_left_alone_and_may_carry_metadata():
    input, label, tube, branches = random_case()
    target = torch.cat([label, tube, branches], 1).to(torch.int32)
    before = input.clone(), target.clone()
    value = focused(over="branch", log=True)(MetaTensor(input), MetaTensor(target))
    assert type(value) is torch.Tensor
    assert torch.equal(input, before[0]) and torch.equal(target, before[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lambda_recall": -1}, "lambda_recall must be at least 0, got -1"),
        ({"gamma": -0.5}, "gamma must be at least 0, got -0.5"),
        ({"over": "pixel"}, "over must be one of class, branch, voxel, got pixel"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        focused(**options)


def test_missing_branches_and_heads_without_weights_are_named():
    input, label, tube, _ = random_case()
    target = torch.cat([label, tube], 1)
    with pytest.raises(ValueError, match="got 2 channels; TubeBranchesd after TubedSkeletond numbers them"):
        focused(over="branch")(input, target)
    with pytest.raises(ValueError, match="over='branch' needs the numbers of the branches"):
        focused_recall(input, label, tube, over="branch")

    class FirstHead(torch.nn.Module):
        def forward(self, heads, target):
            return heads[0].sum()

    with pytest.raises(ValueError, match="2 heads need a TubeDeepSupervisionLoss in the loss"):
        focused(FirstHead())([input, input], target)
