"""What all rival losses share: targets, classes, ignored voxels, empty cases, precision, the line that selects one."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch.nn.functional import one_hot

from monai_skelrec import DiceCESkeletonRecallLoss, TubeDeepSupervisionLoss, baselines
from monai_skelrec.baselines import (
    DiceCEcbDiceLoss,
    DiceCEclCELoss,
    DiceCEclDiceLoss,
    DiceCETopoclDiceLoss,
    SCNPDiceCELoss,
)
from monai_skelrec.handlers import WarmUp

TRAIN = Path(__file__).parents[1] / "bundle" / "configs" / "train.yaml"
CERTAIN = 50.0  # logit of a probability that is 1 to float precision

# the same options in all: few iterations are enough for the small arrays, and nothing is drawn
COMPOUNDS = {
    "cldice": lambda **options: DiceCEclDiceLoss(iterations=3, **options),
    "topo_cldice": lambda **options: DiceCETopoclDiceLoss(iterations=3, noise=0, **options),
    "cbdice": lambda **options: DiceCEcbDiceLoss(iterations=3, **options),
    "clce": lambda **options: DiceCEclCELoss(iterations=3, **options),
}
ALL = {**COMPOUNDS, "scnp": SCNPDiceCELoss}
RATIOS = ("cldice", "topo_cldice", "cbdice")
compounds = pytest.mark.parametrize("name", COMPOUNDS)
every_loss = pytest.mark.parametrize("name", ALL)

# seven rows of eight pixels: class 1 along the second, class 2 along the sixth
LABEL = torch.zeros(1, 1, 7, 8)
LABEL[..., 1, :], LABEL[..., 5, :] = 1, 2
# of class 1 the first six are found, of class 2 all
FOUND = LABEL.clone()
FOUND[..., 1, 6:] = 0


def stacked(label: torch.Tensor) -> torch.Tensor:
    return torch.cat([label, label], 1)


def certain(classes: torch.Tensor, n_classes: int = 3) -> torch.Tensor:
    return CERTAIN * one_hot(classes[:, 0].long(), n_classes).movedim(-1, 1).float()


def random_case(
    n_items: int = 2, n_classes: int = 3, shape: tuple[int, ...] = (9, 10), dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(n_items, n_classes, *shape, generator=generator, dtype=dtype)
    label = torch.randint(0, n_classes, (n_items, 1, *shape), generator=generator)
    return logits.requires_grad_(), stacked(label)


def term_of(loss: torch.nn.Module, name: str, logits: torch.Tensor, target: torch.Tensor) -> float:
    loss(logits, target)
    return loss.terms[name].item()


@pytest.mark.parametrize("name", RATIOS)
def test_value_counted_by_hand(name):
    # class 1: precision 6/6, recall (6 + 1)/(8 + 1) with the smoothing of 1; class 2: nothing amiss
    assert term_of(ALL[name](), name, certain(FOUND), stacked(LABEL)) == pytest.approx((1 / 8 + 0) / 2, abs=1e-5)
    # without smoothing recall is 6/8
    assert term_of(ALL[name](smooth=0), name, certain(FOUND), stacked(LABEL)) == pytest.approx((1 / 7) / 2, abs=1e-5)


@pytest.mark.parametrize("name", RATIOS)
def test_false_positives_cost_what_misses_cost(name):
    assert term_of(ALL[name](), name, certain(LABEL), stacked(FOUND)) == pytest.approx(1 / 16, abs=1e-5)


@every_loss
@pytest.mark.parametrize("shape", [(12, 13), (10, 11, 9)])
def test_a_perfect_prediction_costs_nothing(name, shape):
    label = torch.zeros(1, 1, *shape)
    label[:, :, 2:7, 1:9], label[:, :, 8:9, 2:] = 1, 2
    assert ALL[name]()(certain(label), stacked(label)).item() == pytest.approx(0, abs=1e-6)


@compounds
def test_the_sum_is_dice_and_cross_entropy_and_the_weighted_term(name):
    logits, target = random_case()
    loss = ALL[name](lambda_dice=0.5, lambda_ce=2, lambda_skeleton=3)
    value = loss(logits, target)
    alone = DiceCESkeletonRecallLoss(lambda_dice=0.5, lambda_ce=2, lambda_skeleton=0)(logits, target)
    assert list(loss.terms) == ["dice", "ce", name]
    assert value.item() == pytest.approx(alone.item() + 3 * loss.terms[name].item())
    assert not any(term.requires_grad for term in loss.terms.values())
    assert ALL[name](lambda_skeleton=0)(logits, target).item() == pytest.approx(
        DiceCESkeletonRecallLoss(lambda_skeleton=0)(logits, target).item()
    )
    copy.deepcopy(loss)


@compounds
def test_warm_up_lets_the_term_wait_as_skeleton_recall_does(name):
    logits, target = random_case()
    loss = COMPOUNDS[name]()
    late = WarmUp(loss, 2)
    values = []
    for epoch in (2, 3):
        late(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))
        values.append(loss(logits, target))
    without = COMPOUNDS[name](lambda_skeleton=0)(logits, target)
    torch.testing.assert_close(values[0], without)
    torch.testing.assert_close(values[1], COMPOUNDS[name]()(logits, target))
    assert not torch.isclose(*values)


@pytest.mark.parametrize("name", RATIOS)
def test_classes_are_the_mean_of_runs_with_one_class_each(name):
    logits, target = random_case(n_classes=4)
    p = torch.softmax(logits, 1)
    runs = [
        term_of(ALL[name](sigmoid=True), name, torch.logit(p[:, c : c + 1]), (target == c).long()) for c in (1, 2, 3)
    ]
    assert term_of(ALL[name](), name, logits, target) == pytest.approx(sum(runs) / 3, abs=1e-6)


@every_loss
def test_ignored_voxels_change_nothing_and_get_no_gradient(name):
    logits, target = random_case(shape=(9, 14))
    target[:, :1, :, 9:] = 255
    loss = ALL[name](ignore_index=255)
    value = loss(logits, target)
    value.backward()
    assert not logits.grad[..., 9:].any()
    assert logits.grad[..., :9].any()
    other = logits.detach().clone()
    other[..., 9:] = -7 * other[..., 9:]
    assert loss(other, target).item() == pytest.approx(value.item(), abs=1e-12)


@compounds
def test_a_class_that_the_label_lacks_is_left_out_of_the_mean(name):
    only_1 = torch.where(LABEL == 2, 0, LABEL)
    with_1, both = (term_of(ALL[name](), name, certain(FOUND), stacked(label)) for label in (only_1, LABEL))
    assert with_1 > 1.9 * both > 0


@compounds
def test_an_item_without_any_class_adds_nothing_and_stays_in_the_batch(name):
    empty = torch.zeros_like(LABEL)
    one = term_of(ALL[name](), name, certain(FOUND), stacked(LABEL))
    two = term_of(ALL[name](), name, certain(torch.cat([FOUND, empty])), stacked(torch.cat([LABEL, empty])))
    assert two == pytest.approx(one / 2, rel=1e-5)


@every_loss
@pytest.mark.parametrize("predicted", ["nothing", "all"])
@pytest.mark.parametrize("there", ["nothing", "all"])
def test_empty_and_full_cases_are_finite(name, predicted, there):
    values = {"nothing": torch.zeros(1, 1, 6, 6), "all": torch.ones(1, 1, 6, 6)}
    logits = certain(values[predicted], 2).requires_grad_()
    value = ALL[name]()(logits, stacked(values[there]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()
    if predicted == there == "nothing":
        assert value.item() == pytest.approx(0, abs=1e-6)


@compounds
def test_no_class_at_all_keeps_the_graph(name):
    logits = torch.randn(1, 3, 6, 6, requires_grad=True)
    loss = ALL[name](lambda_dice=0, lambda_ce=0)
    value = loss(logits, torch.zeros(1, 2, 6, 6))
    value.backward()
    assert value.item() == loss.terms[name].item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("name", RATIOS)
def test_batch_pools_the_sums_of_all_items(name):
    # class 1: 6 of 8 and 8 of 8, so recall (14 + 1)/(16 + 1); class 2: nothing amiss
    logits, target = certain(torch.cat([FOUND, LABEL])), stacked(torch.cat([LABEL, LABEL]))
    recall = 15 / 17
    expected = (1 - 2 * recall / (1 + recall)) / 2
    assert term_of(ALL[name](batch=True), name, logits, target) == pytest.approx(expected, abs=1e-5)
    assert term_of(ALL[name](), name, logits, target) == pytest.approx(1 / 32, abs=1e-5)


@pytest.mark.parametrize("name", ["cldice", "cbdice", "clce", "scnp"])
@pytest.mark.parametrize("options", [{}, {"batch": True}, {"sigmoid": True}])
def test_gradient(name, options):
    logits, target = random_case(shape=(5, 6))
    loss = ALL[name](**options)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits, fast_mode=True)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_under_autocast_is_finite_and_near(name, dtype):
    logits, target = random_case()
    half = logits.detach().to(dtype)
    exact = ALL[name]()(half.double(), target)
    half[0, 0, 0, 0] *= 1
    half.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = ALL[name]()(half, target)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact.detach(), rtol=1e-3, atol=1e-3)
    assert half.grad.dtype == dtype and torch.isfinite(half.grad).all()
    huge = (half.detach() * 5000).requires_grad_()
    ALL[name]()(huge, target).backward()
    assert torch.isfinite(huge.grad).all()


@every_loss
def test_every_target_form_gives_the_same_value(name):
    logits, target = random_case(dtype=torch.float32)
    hot = one_hot(target[:, 1], 3).movedim(-1, 1)
    expected = ALL[name]()(logits, target).item()
    for form in (target.float(), target.to(torch.uint8), torch.cat([target[:, :1], hot], 1), MetaTensor(target)):
        assert ALL[name]()(logits, form).item() == pytest.approx(expected, abs=1e-6)
    regions = ALL[name](sigmoid=True, include_background=True)
    assert math.isfinite(regions(logits, torch.cat([hot, hot], 1)).item())


@every_loss
def test_heads_of_lower_resolution_are_trained_too(name):
    label = torch.zeros(1, 1, 12, 12)
    label[:, :, 3:6], label[:, :, 8:10] = 1, 2
    heads = [torch.randn(1, 3, n, n, requires_grad=True) for n in (12, 6)]
    only = {"lambda_dice": 0.0, "lambda_ce": 0.0} if name in COMPOUNDS else {}
    deep = TubeDeepSupervisionLoss(ALL[name](**only))
    deep(heads, stacked(label)).backward()
    assert all(head.grad.any() for head in heads)
    assert name == "scnp" or name in deep.terms


@every_loss
@pytest.mark.parametrize("shape", [(2, 3, 9, 10), (2, 2, 9, 9), (1, 2, 9, 10), (2, 1, 9, 10)])
def test_a_target_that_does_not_fit_is_refused(name, shape):
    with pytest.raises(ValueError, match=r"target must have 2 or 4 channels, .*\(2, 3, 9, 10\), got \("):
        ALL[name]()(torch.zeros(2, 3, 9, 10), torch.zeros(shape))


@pytest.mark.parametrize("name", baselines.__all__)
def test_one_line_of_the_config_selects_it(name):
    parser = ConfigParser(ConfigParser.load_config_file(TRAIN))
    parser["loss::loss::_target_"] = f"monai_skelrec.baselines.{name}"
    parser["lambda_skeleton"] = 0.25
    loss = parser.get_parsed_content("loss")
    assert isinstance(loss.loss, getattr(baselines, name))
    inner = loss.loss.loss if name == "SCNPDiceCELoss" else loss.loss
    assert inner.lambda_skeleton == 0.25


@compounds
def test_options_that_make_no_sense_are_refused(name):
    with pytest.raises(ValueError, match="lambda_skeleton must be at least 0, got -1"):
        ALL[name](lambda_skeleton=-1)
    with pytest.raises(ValueError, match="ignore_index must not be 0"):
        ALL[name](ignore_index=0)
    with pytest.raises(ValueError, match="iterations must be at least 1, .* got 0"):
        type(ALL[name]())(iterations=0)
