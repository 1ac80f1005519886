"""What Equations 1 and 2 say, on tubes whose recall is counted by hand and against the published loss written out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from torch.nn.functional import cross_entropy, one_hot

from monai_skelrec.losses import DiceCESkeletonRecallLoss, SkeletonRecallLoss

CERTAIN = 50.0  # logit of a probability that is 1 to float precision

# one row of 8 pixels: 4 on the tube of class 1, 2 of class 2, 2 without tube
TUBE = torch.tensor([1, 1, 1, 1, 2, 2, 0, 0]).view(1, 1, 1, 8)
NO_TUBE = torch.zeros_like(TUBE)
PERFECT = [1, 1, 1, 1, 2, 2, 0, 0]
NOTHING = [0] * 8


def channels_of(classes: list[int] | torch.Tensor, n_classes: int = 3) -> torch.Tensor:
    """One-hot probabilities of a row of classes; shape (1, n_classes, 1, len(classes))."""
    return one_hot(torch.as_tensor(classes).flatten(), n_classes).T.reshape(1, n_classes, 1, -1).float()


def logits_of(classes: list[int], n_classes: int = 3) -> torch.Tensor:
    """Logits that predict ``classes`` with certainty."""
    return CERTAIN * channels_of(classes, n_classes)


def recall_loss(**options) -> SkeletonRecallLoss:
    return SkeletonRecallLoss(to_onehot_y=True, softmax=True, **options)


@pytest.mark.parametrize(
    "predicted, expected",
    [
        pytest.param(PERFECT, 0.0, id="perfect"),
        pytest.param([1, 1, 1, 1, 2, 2, 2, 2], 0.0, id="false positives are free"),
        pytest.param(NOTHING, 1.0, id="nothing predicted"),
        pytest.param([1, 1, 0, 0, 2, 2, 0, 0], 0.25, id="half of one class of two"),
        pytest.param([1, 1, 1, 1, 1, 1, 0, 0], 0.5, id="right place, wrong class"),
        pytest.param([2, 1, 1, 1, 2, 0, 0, 0], 0.375, id="a quarter of one, half of the other"),
    ],
)
def test_value_counted_by_hand(predicted, expected):
    assert recall_loss()(logits_of(predicted), TUBE).item() == pytest.approx(expected, abs=1e-5)


def test_uniform_logits_recall_one_over_the_number_of_classes():
    assert recall_loss()(torch.zeros(1, 3, 1, 8), TUBE).item() == pytest.approx(2 / 3, abs=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "other_act", "none"])
@pytest.mark.parametrize("indices", [True, False])
def test_every_activation_and_target_form_gives_the_same_recall(activation, indices):
    options = {"other_act": {"other_act": torch.sigmoid}, "none": {}}.get(activation, {activation: True})
    input = logits_of([1, 1, 0, 0, 2, 2, 0, 0])
    input = torch.softmax(input, 1) if activation == "none" else input
    if activation in ("sigmoid", "other_act"):
        input = 2 * input - CERTAIN
    background = activation == "sigmoid" and not indices
    target = TUBE if indices else channels_of(TUBE)
    if background:  # overlapping regions carry no background: the first channel is left without tube
        target[:, 0] = 0
    loss = SkeletonRecallLoss(to_onehot_y=indices, include_background=background, **options)
    assert loss(input, target).item() == pytest.approx(0.25, abs=1e-5)


def test_absent_class_is_left_out_or_counts_as_recalled():
    without_class_2 = torch.where(TUBE == 2, 0, TUBE)
    half = logits_of([1, 1, 0, 0, 0, 0, 0, 0])
    assert recall_loss(absent="skip")(half, without_class_2).item() == pytest.approx(0.5, abs=1e-5)
    assert recall_loss(absent="count")(half, without_class_2).item() == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("absent", ["skip", "count"])
def test_an_item_without_any_tube_costs_nothing_and_stays_in_the_batch(absent):
    input = torch.cat([logits_of(NOTHING), logits_of(NOTHING)])
    loss = recall_loss(absent=absent)(input, torch.cat([TUBE, NO_TUBE]))
    assert loss.item() == pytest.approx(0.5, abs=1e-5)


def test_no_tube_at_all_costs_nothing_and_keeps_the_graph():
    logits = torch.randn(1, 3, 1, 8, requires_grad=True)
    loss = recall_loss()(logits, NO_TUBE)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_batch_pools_the_sums_of_all_items():
    # class 1: 4 of 4 and 0 of 1; class 2: 2 of 2 and 0 of 3
    other = torch.tensor([1, 2, 2, 2, 0, 0, 0, 0]).view_as(TUBE)
    input, target = torch.cat([logits_of(PERFECT), logits_of(NOTHING)]), torch.cat([TUBE, other])
    assert recall_loss()(input, target).item() == pytest.approx(0.5, abs=1e-5)
    assert recall_loss(batch=True)(input, target).item() == pytest.approx((1 / 5 + 3 / 5) / 2, abs=1e-5)


def test_reductions():
    input, target = torch.cat([logits_of([1, 1, 0, 0, 2, 2, 0, 0])] * 2), torch.cat([TUBE, NO_TUBE])
    each = recall_loss(reduction="none")(input, target)
    assert each.shape == (2, 2, 1, 1)
    torch.testing.assert_close(each.flatten(1), torch.tensor([[0.5, 0], [0, 0]]), atol=1e-5, rtol=0)
    assert recall_loss(reduction="sum")(input, target).item() == pytest.approx(0.5, abs=1e-5)
    assert recall_loss(reduction="mean")(input, target).item() == pytest.approx(0.125, abs=1e-5)
    assert recall_loss(reduction="none", batch=True)(input, target).shape == (1, 2, 1, 1)


def test_weights_multiply_and_never_divide():
    half_of_1_none_of_2 = logits_of([1, 1, 0, 0, 0, 0, 0, 0])
    loss = recall_loss(weight=[9, 2, 0.5])(half_of_1_none_of_2, TUBE)
    assert loss.item() == pytest.approx((2 * 0.5 + 0.5 * 1) / 2, abs=1e-5)


def test_smoothing_enters_numerator_and_denominator():
    loss = recall_loss(smooth_nr=1, smooth_dr=3)(logits_of([1, 1, 0, 0, 2, 2, 0, 0]), TUBE)
    assert loss.item() == pytest.approx(((1 - 3 / 7) + (1 - 3 / 5)) / 2, abs=1e-5)


def test_background_of_a_one_hot_target_counts_when_asked():
    input, target = channels_of([1, 1, 0, 0, 2, 2, 2, 2]), channels_of(TUBE)
    assert SkeletonRecallLoss()(input, target).item() == pytest.approx(0.25, abs=1e-5)
    assert SkeletonRecallLoss(include_background=True)(input, target).item() == pytest.approx(0.5, abs=1e-5)


def test_one_channel_is_its_own_mask_and_takes_no_weight():
    tube = (TUBE > 0).float()
    logits = CERTAIN * (2 * torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0]).view_as(tube) - 1)
    for options in ({}, {"weight": [7.0]}, {"to_onehot_y": True}, {"include_background": True}):
        assert SkeletonRecallLoss(sigmoid=True, **options)(logits, tube).item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("absent", ["skip", "count"])
def test_classes_may_share_a_voxel_of_the_tube(absent, background):
    """Class 1 on the first four, class 2 on the middle four of eight pixels; two and none of them found."""
    shared = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]]).view(
        1, 3, 1, 8
    )
    input = logits_of([0, 0, 1, 1, 0, 0, 0, 0])
    loss = recall_loss(include_background=background, absent=absent)
    assert loss(input, shared).item() == pytest.approx((1 / 2 + 1) / 2, abs=1e-5)
    compound = DiceCESkeletonRecallLoss(lambda_dice=0, lambda_ce=0, absent=absent, include_background=background)
    assert compound(input, torch.cat([TUBE, shared], 1)).item() == pytest.approx((1 / 2 + 1) / 2, abs=1e-5)


def test_terms_of_the_last_call_are_kept_without_a_graph():
    logits = torch.randn(1, 3, 1, 8, requires_grad=True)
    recall, compound = recall_loss(), DiceCESkeletonRecallLoss(lambda_skeleton=0)
    assert recall.terms == compound.terms == {}
    value = recall(logits, TUBE)
    compound(logits, torch.cat([TUBE, TUBE], 1))
    assert list(compound.terms) == ["dice", "ce", "skeleton_recall"]
    # also what is not trained on can be watched
    assert recall.terms["skeleton_recall"].item() == value.item()
    assert compound.terms["skeleton_recall"].item() == pytest.approx(value.item(), abs=1e-6)
    assert not any(term.requires_grad for term in (*recall.terms.values(), *compound.terms.values()))
    copy.deepcopy(compound)  # as EMA and data parallelism do


@pytest.mark.parametrize("options", [{}, {"batch": True}, {"absent": "count", "reduction": "sum", "weight": [1, 2, 3]}])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_recall_gradient(activation, options):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 1, 3, 4))
    loss = SkeletonRecallLoss(to_onehot_y=True, **{activation: True}, **options)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), logits)


def test_recall_is_exact_to_float64():
    torch.manual_seed(0)
    p, tube = torch.rand(1, 2, 9, 9, dtype=torch.float64), torch.zeros(1, 1, 9, 9)
    tube[..., :7] = 1
    expected = 1 - (p[:, 1, :, :7].sum() + 1e-5) / (63 + 1e-5)
    assert SkeletonRecallLoss(to_onehot_y=True)(p, tube).item() == pytest.approx(expected.item(), abs=1e-14)


def published_compound_loss(logits, label, tube, *, batch):
    """Cross-entropy minus soft Dice minus soft recall, as in the authors' code, on one-hot tensors."""
    p = torch.softmax(logits, 1)
    y, t = (one_hot(x[:, 0], logits.shape[1]).movedim(-1, 1).to(p) for x in (label, tube))
    axes = ([0] if batch else []) + list(range(2, logits.ndim))
    p, y, t = p[:, 1:], y[:, 1:], t[:, 1:]
    dice = (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5).clip(1e-8)
    recall = ((p * t).sum(axes) + 1e-5) / (t.sum(axes) + 1e-5).clip(1e-8)
    return 0.7 * cross_entropy(logits, label[:, 0]) - 0.9 * dice.mean() - 0.3 * recall.mean()


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)])
@pytest.mark.parametrize("n_items, n_classes", [(1, 2), (3, 5), (2, 14), (2, 118)])
def test_equals_the_published_compound_loss(shape, n_items, n_classes, batch):
    torch.manual_seed(1)
    logits = torch.randn(n_items, n_classes, *shape, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, n_classes, (n_items, 1, *shape))
    label[0][label[0] == 1] = 0  # a class that one item lacks
    tube = label * (torch.rand(label.shape) < 0.3)
    options = {"lambda_ce": 0.7, "lambda_dice": 0.9, "lambda_skeleton": 0.3, "batch": batch, "absent": "count"}
    ours = DiceCESkeletonRecallLoss(**options)(logits, torch.cat([label, tube], 1))
    theirs = published_compound_loss(logits, label, tube, batch=batch) + 0.9 + 0.3
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    (grad_ours,), (grad_theirs,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(grad_ours, grad_theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("options", [{}, {"include_background": True}, {"batch": True, "reduction": "sum"}])
def test_without_skeleton_equals_monai_dice_ce(options):
    torch.manual_seed(2)
    logits, label = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 1, 5, 6))
    weight = torch.tensor([0.2, 1, 2, 3])
    ours = DiceCESkeletonRecallLoss(lambda_skeleton=0, weight=weight, **options)
    theirs = DiceCELoss(to_onehot_y=True, softmax=True, weight=weight, **{"include_background": False, **options})
    torch.testing.assert_close(ours(logits, torch.cat([label, label], 1)), theirs(logits, label))


def test_compound_value_counted_by_hand():
    target = torch.cat([TUBE, TUBE], 1)
    parts = {"lambda_dice": 0.0, "lambda_ce": 0.0, "lambda_skeleton": 0.0}
    logits = logits_of([1, 1, 0, 0, 2, 2, 0, 0])
    for name, expected in (
        ("lambda_dice", (1 - 2 * 2 / (2 + 4) + 0) / 2),  # class 1: 2 of 4 found; class 2: all
        ("lambda_ce", 2 * CERTAIN / 8),  # two of eight voxels wrong by the whole logit
        ("lambda_skeleton", 0.25),
    ):
        assert DiceCESkeletonRecallLoss(**{**parts, name: 1})(logits, target).item() == pytest.approx(
            expected, abs=1e-5
        )


def test_overlapping_regions_counted_by_hand():
    # two regions of a row of 4: the first is all, the second its first half; both tubes are the region
    label = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).view(1, 2, 4)
    logits = CERTAIN * (2.0 * torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0]]).view(1, 2, 4) - 1)
    loss = DiceCESkeletonRecallLoss(sigmoid=True, include_background=True)
    dice = ((1 - 2 * 3 / (3 + 4)) + (1 - 2 * 1 / (2 + 2))) / 2
    entropy = 3 * CERTAIN / 8  # three of eight entries wrong
    recall = (1 / 4 + 1 / 2) / 2
    assert loss(logits, torch.cat([label, label], 1)).item() == pytest.approx(dice + entropy + recall, abs=1e-4)


def test_ignored_voxels_count_nowhere():
    target = torch.cat([TUBE, TUBE], 1)
    longer = torch.nn.functional.pad(target, (0, 4))
    longer[:, 0, ..., 8:] = 255
    logits = torch.randn(1, 3, 1, 12, generator=torch.Generator().manual_seed(3), requires_grad=True)
    with_ignored = DiceCESkeletonRecallLoss(ignore_index=255)(logits, longer)
    with_ignored.backward()
    torch.testing.assert_close(with_ignored, DiceCESkeletonRecallLoss()(logits[..., :8], target))
    assert not logits.grad[..., 8:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_a_float_loss_and_a_half_gradient(dtype):
    torch.manual_seed(4)
    logits = torch.randn(2, 3, 6, 7, dtype=dtype, requires_grad=True)
    target = torch.randint(0, 3, (2, 2, 6, 7))
    for loss, labels in ((DiceCESkeletonRecallLoss(), target), (recall_loss(), target[:, 1:])):
        exact_logits = logits.detach().double().requires_grad_()
        exact = loss(exact_logits, labels)
        exact.backward()
        logits.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(logits, labels)
        value.backward()
        assert value.dtype == torch.float32
        assert logits.grad.dtype == dtype
        torch.testing.assert_close(value.double(), exact, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits.grad.double(), exact_logits.grad, atol=1e-3, rtol=1e-2)


def test_autocast_changes_nothing_for_float_logits():
    logits, target = torch.randn(1, 3, 6, 7), torch.randint(0, 3, (1, 2, 6, 7))
    with torch.autocast("cpu", torch.bfloat16):
        value = DiceCESkeletonRecallLoss()(logits, target)
    assert value.item() == DiceCESkeletonRecallLoss()(logits, target).item()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float16])
@pytest.mark.parametrize("meta", [False, True])
def test_targets_of_any_dtype_and_with_metadata(dtype, meta):
    torch.manual_seed(5)
    logits, target = torch.randn(2, 3, 6, 7), torch.randint(0, 3, (2, 2, 6, 7))
    converted = MetaTensor(target.to(dtype)) if meta else target.to(dtype)
    before = converted.clone()
    for loss, plain, given in (
        (DiceCESkeletonRecallLoss(), target, converted),
        (recall_loss(), target[:, 1:], converted[:, 1:]),
    ):
        value = loss(MetaTensor(logits) if meta else logits, given)
        assert type(value) is torch.Tensor
        assert value.item() == loss(logits, plain).item()
    assert torch.equal(converted, before)


def test_a_boolean_tube_is_a_mask():
    logits, tube = torch.randn(2, 1, 6, 7), torch.rand(2, 1, 6, 7) < 0.5
    loss = SkeletonRecallLoss(sigmoid=True)
    assert loss(logits, tube).item() == loss(logits, tube.float()).item()


def test_a_better_prediction_costs_less():
    target = torch.cat([TUBE, TUBE], 1)
    losses = [DiceCESkeletonRecallLoss()(scale * channels_of(PERFECT), target).item() for scale in (-2, 0, 2, 4, 50)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-5)


def test_the_weight_follows_the_module_but_not_its_checkpoint():
    loss = DiceCESkeletonRecallLoss(weight=[1.0, 2.0, 3.0])
    assert dict(loss.named_buffers())["weight"].tolist() == [1, 2, 3]
    assert not loss.state_dict()


LABEL_2D = torch.zeros(1, 2, 4, 4)
LOGITS_2D = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: SkeletonRecallLoss(sigmoid=True, softmax=True), "exclude each other"),
        (lambda: SkeletonRecallLoss(softmax=True, other_act=torch.tanh), "exclude each other"),
        (lambda: SkeletonRecallLoss(reduction="median"), "reduction must be one of mean, sum, none, got median"),
        (lambda: SkeletonRecallLoss(absent="ignore"), "absent must be one of skip, count, got ignore"),
        (lambda: SkeletonRecallLoss(weight=[1, -1]), "weight must be a list of numbers of at least 0"),
        (lambda: DiceCESkeletonRecallLoss(weight=2.0), "weight must be a list of numbers of at least 0"),
        (lambda: DiceCESkeletonRecallLoss(reduction="none"), "reduction must be one of mean, sum, got none"),
        (lambda: DiceCESkeletonRecallLoss(lambda_dice=-1), "lambda_dice must be at least 0, got -1"),
        (lambda: DiceCESkeletonRecallLoss(lambda_ce=-1), "lambda_ce must be at least 0, got -1"),
        (lambda: DiceCESkeletonRecallLoss(lambda_skeleton=-1), "lambda_skeleton must be at least 0, got -1"),
        (lambda: DiceCESkeletonRecallLoss(ignore_index=0), "ignore_index must not be 0"),
        (lambda: DiceCESkeletonRecallLoss(absent="zero"), "absent must be one of skip, count, got zero"),
    ],
)
def test_a_wrong_option_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "loss, input, target, message",
    [
        (recall_loss(), LOGITS_2D, LABEL_2D, r"shape \(1, 1, 4, 4\) .* got \(1, 2, 4, 4\)"),
        (SkeletonRecallLoss(), LOGITS_2D, LABEL_2D[:, 1:], "set to_onehot_y=True for class indices"),
        (recall_loss(), LOGITS_2D[:, :1], LABEL_2D[:, 1:], "softmax needs a background and at least one class"),
        (recall_loss(), LOGITS_2D, LABEL_2D[:, 1:] + 3, "whole class indices from 0 to 2, got values from 3 to 3"),
        (recall_loss(), LOGITS_2D, LABEL_2D[:, 1:] - 1, "whole class indices from 0 to 2, got values from -1 to -1"),
        (recall_loss(), LOGITS_2D, LABEL_2D[:, 1:] + 0.5, "whole class indices"),
        (SkeletonRecallLoss(sigmoid=True), LOGITS_2D, LOGITS_2D, "would drop the first of 3 overlapping regions"),
        (SkeletonRecallLoss(), LOGITS_2D, LOGITS_2D + 2, "0 or 1 in each of its 3 channels"),
        (SkeletonRecallLoss(), LOGITS_2D - 4, LOGITS_2D + 1, "must hold probabilities .* from -4 to -4; set softmax"),
        (recall_loss(weight=[1, 2]), LOGITS_2D, LABEL_2D[:, 1:], "one number per channel of input.*: 3, got 2"),
        (DiceCESkeletonRecallLoss(), LOGITS_2D, LABEL_2D[:, 1:], "stack the label and its tubed skeleton"),
        (DiceCESkeletonRecallLoss(), LOGITS_2D, torch.zeros(1, 6, 4, 4), r"shape \(1, 2, 4, 4\)"),
        (DiceCESkeletonRecallLoss(), LOGITS_2D[:, :1], LABEL_2D, "softmax needs a background and at least one class"),
        (DiceCESkeletonRecallLoss(), LOGITS_2D, LABEL_2D + 3, "label must hold whole class indices from 0 to 2, got"),
        (
            DiceCESkeletonRecallLoss(ignore_index=255),
            LOGITS_2D,
            LABEL_2D + 7,
            "from 0 to 2 or ignore_index=255, got values from 7 to 7",
        ),
        (
            DiceCESkeletonRecallLoss(),
            LOGITS_2D,
            torch.cat([LABEL_2D[:, :1], LABEL_2D[:, :1] + 3], 1),
            "tubed skeleton must hold whole class indices from 0 to 2, got values from 3 to 3",
        ),
        (
            DiceCESkeletonRecallLoss(sigmoid=True),
            LOGITS_2D,
            torch.zeros(1, 6, 4, 4),
            "would drop the first of 3 overlapping regions",
        ),
        (
            DiceCESkeletonRecallLoss(sigmoid=True, include_background=True),
            LOGITS_2D,
            torch.full((1, 6, 4, 4), 2),
            "label must be 0 or 1 in each of its 3 channels",
        ),
        (DiceCESkeletonRecallLoss(weight=[1.0]), LOGITS_2D, LABEL_2D, "one number per channel of input.*: 3, got 1"),
        (DiceCESkeletonRecallLoss(), LOGITS_2D, LABEL_2D * math.nan, "label must hold whole class indices"),
    ],
)
def test_a_wrong_tensor_is_named(loss, input, target, message):
    with pytest.raises(ValueError, match=message):
        loss(input, target)
