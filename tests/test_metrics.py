"""The MONAI side of the metrics: shapes and forms of input, empty cases, reductions, engines, processes."""

from __future__ import annotations

import math
import os
import socket
from datetime import timedelta

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import compute_dice
from monai.networks import one_hot

from monai_skelrec.mask_measures import MASK_MEASURES, measure_masks
from monai_skelrec.metrics import (
    BettiErrorMetric,
    CenterlineDiceMetric,
    MeasureMetric,
    compute_betti_error,
    compute_centerline_dice,
    compute_measure,
)

NAN = float("nan")


def drawn(*rows: str) -> torch.Tensor:
    """Class indices, shape (1, H, W); "." is background."""
    return torch.tensor([[[int(digit) for digit in row.replace(".", "0")] for row in rows]])


# lines one pixel wide, which are their own centrelines
REFERENCE = drawn("11111111..", "..........", "222.222...", "..........", "..........")
# half of 1 is missed, 2 is joined, 3 is invented
PREDICTION = drawn("1111......", "..........", "2222222...", "..........", "3.3.3.3...")
CLASSES = 5  # 4 is in neither

HALF = 2 * 1 * 0.5 / 1.5  # precision 1, sensitivity 1/2
JOINED = 2 * 1 * (6 / 7) / (1 + 6 / 7)  # precision 6/7, sensitivity 1
CENTERLINE_DICE = [HALF, JOINED, 0, NAN]
BETTI_0 = [0, 1, 4, NAN]


def equal(actual: torch.Tensor, expected) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), equal_nan=True)


def forms(label: torch.Tensor) -> dict[str, torch.Tensor]:
    indices = label[None]
    return {
        "int64 indices": indices,
        "uint8 indices": indices.to(torch.uint8),
        "float32 indices": indices.float(),
        "one-hot float": one_hot(indices, CLASSES),
        "one-hot bool": one_hot(indices, CLASSES).bool(),
        "MetaTensor": MetaTensor(indices.float()),
        "strided": indices.mT.contiguous().mT,
    }


@pytest.mark.parametrize("y_form", forms(REFERENCE))
@pytest.mark.parametrize("pred_form", forms(PREDICTION))
def test_one_hot_and_index_maps_score_the_same(pred_form, y_form):
    y_pred, y = forms(PREDICTION)[pred_form], forms(REFERENCE)[y_form]
    equal(torch.as_tensor(compute_centerline_dice(y_pred, y, num_classes=CLASSES)), [CENTERLINE_DICE])
    equal(torch.as_tensor(compute_betti_error(y_pred, y, 0, num_classes=CLASSES)), [BETTI_0])


def test_index_maps_take_the_number_of_classes_from_the_one_hot_side():
    one_hot_pred = one_hot(PREDICTION[None], CLASSES)
    equal(compute_centerline_dice(one_hot_pred, REFERENCE[None]), [CENTERLINE_DICE])
    equal(compute_centerline_dice(REFERENCE[None], one_hot_pred), [CENTERLINE_DICE])


def test_background_is_channel_0_and_only_counts_when_asked():
    scores = compute_betti_error(PREDICTION[None], REFERENCE[None], 0, include_background=True, num_classes=CLASSES)
    # background is one piece in both
    equal(scores, [[0, *BETTI_0]])
    scores = compute_centerline_dice(REFERENCE[None], REFERENCE[None], include_background=True, num_classes=CLASSES)
    equal(scores, [[1, 1, 1, NAN, NAN]])


@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("num_classes", [None, 1])
def test_single_mask_is_foreground(include_background, num_classes):
    pred, reference = (PREDICTION == 1)[None], (REFERENCE == 1)[None]
    equal(compute_centerline_dice(pred, reference, include_background, num_classes), [[HALF]])


def test_classes_may_overlap_in_one_hot_input():
    both = torch.zeros(1, 3, 5, 10)
    both[:, 1:] = 1
    equal(compute_betti_error(both, torch.zeros(1, 3, 5, 10), 0), [[1, 1]])


def test_betti_error_of_each_dimension():
    size = 9
    centre = torch.linspace(-4, 4, size)
    distance = sum(axis**2 for axis in torch.meshgrid(centre, centre, centre, indexing="ij")).sqrt()
    shell = ((distance <= 4) & (distance > 2.5))[None, None]
    ring = shell & (torch.arange(size) == 4)
    # ring (1, 1, 0) against shell (1, 0, 1)
    assert [compute_betti_error(ring, shell, dimension).item() for dimension in (0, 1, 2)] == [0, 1, 1]


def test_batch_is_scored_item_by_item():
    y_pred = torch.stack([PREDICTION, REFERENCE, torch.zeros_like(REFERENCE)])
    y = torch.stack([REFERENCE] * 3)
    expected = [CENTERLINE_DICE, [1, 1, NAN, NAN], [0, 0, NAN, NAN]]
    equal(compute_centerline_dice(y_pred, y, num_classes=CLASSES), expected)
    equal(compute_betti_error(y_pred, y, 0, num_classes=CLASSES), [BETTI_0, [0, 0, NAN, NAN], [1, 2, NAN, NAN]])


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_do_not_change_a_score(threads, monkeypatch):
    random = torch.Generator().manual_seed(0)
    y_pred, y = (torch.randint(0, 6, (2, 1, 12, 12, 12), generator=random).repeat_interleave(4, 2) for _ in range(2))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = compute_centerline_dice(y_pred, y, num_classes=6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    equal(compute_centerline_dice(y_pred, y, num_classes=6), expected.tolist())


def test_input_is_left_as_it_was():
    for name, y_pred in forms(PREDICTION).items():
        y = forms(REFERENCE)[name]
        before = y_pred.clone(), y.clone()
        compute_centerline_dice(y_pred, y, num_classes=CLASSES)
        compute_betti_error(y_pred, y, 1, num_classes=CLASSES)
        assert torch.equal(y_pred, before[0]) and torch.equal(y, before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_come_back_on_the_device_of_the_prediction():
    scores = compute_centerline_dice(PREDICTION[None].cuda(), REFERENCE[None].cuda(), num_classes=CLASSES)
    assert scores.is_cuda
    equal(scores.cpu(), [CENTERLINE_DICE])


# two cases: class averages (HALF + JOINED + 0) / 3 and 1
MEAN = ((HALF + JOINED) / 3 + 1) / 2


@pytest.mark.parametrize(
    "reduction, expected, counted",
    [
        ("mean", MEAN, 2),
        ("mean_batch", [(HALF + 1) / 2, (JOINED + 1) / 2, 0, NAN], [2, 2, 1, 0]),
        ("mean_channel", [(HALF + JOINED) / 3, 1], [3, 2]),
        ("sum", HALF + JOINED + 2, 5),
        ("sum_batch", [HALF + 1, JOINED + 1, 0, NAN], [2, 2, 1, 0]),
        ("sum_channel", [HALF + JOINED, 2], [3, 2]),
        ("none", [CENTERLINE_DICE, [1, 1, NAN, NAN]], [[1, 1, 1, 0], [1, 1, 0, 0]]),
    ],
)
def test_reductions_are_monais_and_count_what_is_defined(reduction, expected, counted):
    metric = CenterlineDiceMetric(reduction=reduction, get_not_nans=True, num_classes=CLASSES)
    metric(torch.stack([PREDICTION, REFERENCE]), torch.stack([REFERENCE, REFERENCE]))
    for _ in range(2):  # aggregating leaves the collected scores as they were
        reduced, not_nans = metric.aggregate()
        equal(reduced.squeeze(), expected)
        equal(not_nans, counted)


def test_aggregate_overrides_the_reduction():
    metric = BettiErrorMetric(0, num_classes=CLASSES)
    metric(PREDICTION[None], REFERENCE[None])
    equal(metric.aggregate().squeeze(), 5 / 3)
    equal(metric.aggregate("none"), [BETTI_0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_to_score_is_nan_and_not_0(reduction):
    empty = torch.zeros(1, 1, 4, 4)
    for metric in (CenterlineDiceMetric(reduction=reduction), BettiErrorMetric(1, reduction=reduction)):
        metric(empty, empty)
        assert math.isnan(metric.aggregate().item())


def test_lists_of_different_grids_accumulate_until_reset():
    metric = CenterlineDiceMetric(reduction="none", num_classes=CLASSES)
    metric([PREDICTION, REFERENCE[:, :3]], [REFERENCE, REFERENCE[:, :3]])
    metric(y_pred=[one_hot(PREDICTION, CLASSES, dim=0)], y=[one_hot(REFERENCE, CLASSES, dim=0)])
    equal(metric.aggregate(), [CENTERLINE_DICE, [1, 1, NAN, NAN], CENTERLINE_DICE])
    metric.reset()
    with pytest.raises(
        ValueError, match="CenterlineDiceMetric has nothing to aggregate: call it on a prediction first"
    ):
        metric.aggregate()


@pytest.mark.parametrize("get_not_nans", [False, True])
@pytest.mark.parametrize("save_details", [False, True])
def test_works_in_monais_ignite_handler(save_details, get_not_nans):
    cases = [{"pred": PREDICTION, "label": REFERENCE}], [{"pred": REFERENCE, "label": REFERENCE}]
    engine = Engine(lambda engine, batch: batch)
    metrics = {
        "centerline_dice": CenterlineDiceMetric(num_classes=CLASSES, get_not_nans=get_not_nans),
        "betti_0": BettiErrorMetric(0, reduction="mean_batch", num_classes=CLASSES),
        "breaks": MeasureMetric("breaks", num_classes=CLASSES),
    }
    for name, metric in metrics.items():
        handler = IgniteMetricHandler(
            metric, output_transform=from_engine(["pred", "label"]), save_details=save_details
        )
        handler.attach(engine, name)
    state = engine.run(cases)
    assert state.metrics["centerline_dice"] == pytest.approx(MEAN)
    equal(state.metrics["betti_0"], [0, 0.5, 4, NAN])
    assert state.metrics["breaks"] == 0
    if save_details:
        equal(state.metric_details["centerline_dice"], [CENTERLINE_DICE, [1, 1, NAN, NAN]])
    else:
        assert not hasattr(state, "metric_details")


SHARES = [PREDICTION], [REFERENCE, torch.zeros_like(REFERENCE)]


def _metrics_of_processes():
    return (
        CenterlineDiceMetric(reduction="none", num_classes=CLASSES),
        MeasureMetric("hausdorff95_mm", spacing=(2, 0.5), reduction="none", num_classes=CLASSES),
        BettiErrorMetric(0, reduction="mean_batch", num_classes=CLASSES),
    )


def _score_a_share(rank: int, port: int, folder: str) -> None:
    address, limit = f"tcp://127.0.0.1:{port}", timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2, timeout=limit)
    for metric in _metrics_of_processes():
        for prediction in SHARES[rank]:
            metric([prediction], [REFERENCE])
        torch.save(metric.aggregate(), f"{folder}/{rank}_{type(metric).__name__}.pt")
    torch.distributed.destroy_process_group()


def _score_in_two_processes(port: int, folder: str) -> None:
    torch.multiprocessing.start_processes(_score_a_share, args=(port, folder), nprocs=2, start_method="fork")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_with_unequal_shares_all_see_every_score(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # one import for both, in a process without threads that a fork would lose
    parent = torch.multiprocessing.get_context("spawn").Process(
        target=_score_in_two_processes, args=(port, str(tmp_path))
    )
    parent.start()
    parent.join()
    assert parent.exitcode == 0
    for metric in _metrics_of_processes():
        for prediction in (*SHARES[0], *SHARES[1]):
            metric([prediction], [REFERENCE])
        for rank in range(2):
            equal(torch.load(tmp_path / f"{rank}_{type(metric).__name__}.pt"), metric.aggregate().tolist())
    equal(torch.load(tmp_path / "1_CenterlineDiceMetric.pt"), [CENTERLINE_DICE, [1, 1, NAN, NAN], [0, 0, NAN, NAN]])


INDICES = torch.zeros(1, 1, 4, 4)


@pytest.mark.parametrize(
    "y_pred, y, num_classes, message",
    [
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), None, r"must be BNHW or BNHWD on one grid, got \(1, 4, 4\)"),
        (INDICES, torch.zeros(1, 1, 4, 5), 2, r"one grid, got \(1, 1, 4, 4\) and \(1, 1, 4, 5\)"),
        (INDICES, torch.zeros(2, 1, 4, 4), 2, r"one grid, got \(1, 1, 4, 4\) and \(2, 1, 4, 4\)"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), None, r"1 channel or one a class \(3\), got \(1, 2, 4, 4\)"),
        (torch.zeros(1, 2, 4, 4), INDICES, 3, r"one a class \(3\), got \(1, 2, 4, 4\) and \(1, 1, 4, 4\)"),
        (INDICES + 3, INDICES, 3, "y_pred must hold class indices 0 to 2, got values from 3.0 to 3.0"),
        (INDICES, INDICES - 1, 3, "y must hold class indices 0 to 2, got values from -1.0 to -1.0"),
        (INDICES * NAN, INDICES, 3, "y_pred must hold class indices 0 to 2, got values from nan to nan"),
        (INDICES + 2, INDICES, None, "y_pred must hold 0 and 1 only, got values from 2.0 to 2.0; .* num_classes"),
        (torch.full((1, 3, 4, 4), -7.0), INDICES, None, "0 and 1 only, got values from -7.0 .*argmax"),
        (torch.full((1, 3, 4, 4), 0.3), INDICES, None, "y_pred must hold whole numbers, got fractions; apply argmax"),
    ],
)
def test_wrong_input_is_named(y_pred, y, num_classes, message):
    with pytest.raises(ValueError, match=message):
        compute_centerline_dice(y_pred, y, num_classes=num_classes)
    with pytest.raises(ValueError, match=message):
        BettiErrorMetric(0, num_classes=num_classes)(y_pred, y)


def test_missing_reference_is_named():
    with pytest.raises(ValueError, match="y, the reference, is needed: call the metric with y_pred and y"):
        CenterlineDiceMetric()(INDICES)


def test_dimension_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="dimension must be 0, 1 or 2, got 3"):
        BettiErrorMetric(3)
    with pytest.raises(ValueError, match=r"0 or 1 in 2D and 0, 1 or 2 in 3D, got 2 for \(1, 1, 4, 4\)"):
        compute_betti_error(INDICES, INDICES, 2)


def test_whole_volume_of_many_classes_is_scored_on_its_foreground_only(monkeypatch):
    """A 64 x 64 x 64 volume whose classes fill a corner of 9 x 9 x 9: thinning sees no more than that."""
    seen = []

    def spy(mask: np.ndarray) -> np.ndarray:
        seen.append(mask.size)
        return mask

    monkeypatch.setattr("monai_skelrec.mask_scores.skeleton", spy)
    y = torch.zeros(1, 1, 64, 64, 64)
    y[..., 40:49, 40:49, 40:49] = torch.arange(1, 10).float()
    compute_centerline_dice(y, y, num_classes=10)
    assert len(seen) == 18 and max(seen) == 81


# --- any measure by its name -----------------------------------------------------------------------------------------

VOLUMES = torch.stack([PREDICTION, REFERENCE], dim=-1), torch.stack([REFERENCE, REFERENCE], dim=-1)


@pytest.mark.parametrize("measure", MASK_MEASURES)
def test_measure_of_each_class_is_that_of_its_masks(measure):
    pred, reference = VOLUMES
    spacing = (0.5, 2, 1)
    expected = [
        measure_masks((pred[0] == index).numpy(), (reference[0] == index).numpy(), [measure], spacing, 99)[measure]
        for index in range(1, CLASSES)
    ]
    actual = compute_measure(pred[None], reference[None], measure, spacing, num_classes=CLASSES)
    # the whole image decides about the penalty, though each class is scored in its own box
    diagonal = math.hypot(5 * 0.5, 10 * 2, 2)
    equal(actual, [[diagonal if value == 99 else value for value in expected]])
    metric = MeasureMetric(measure, spacing, reduction="none", num_classes=CLASSES)
    metric([pred], [reference])
    equal(metric.aggregate(), actual.tolist())


def test_named_measures_are_those_of_the_functions_of_their_own():
    y_pred, y = (volume[None] for volume in VOLUMES)
    equal(
        compute_measure(y_pred, y, "centerline_dice", num_classes=CLASSES),
        compute_centerline_dice(y_pred, y, num_classes=CLASSES).tolist(),
    )
    for dimension in range(3):
        equal(
            compute_measure(y_pred, y, f"betti{dimension}_error", num_classes=CLASSES),
            compute_betti_error(y_pred, y, dimension, num_classes=CLASSES).tolist(),
        )


def test_absent_classes_are_penalised_or_left_out_as_monai_does():
    nothing = torch.zeros_like(REFERENCE)
    invented, missed = (nothing[None], REFERENCE[None]), (REFERENCE[None], nothing[None])
    diagonal = math.hypot(5, 10)
    for (y, y_pred), measure, penalised, ignored in (
        (invented, "dice", 0, NAN),
        (missed, "dice", 0, 0),
        (invented, "hausdorff95_mm", diagonal, NAN),
        (missed, "hausdorff95_mm", diagonal, NAN),
        (invented, "betti0_error", 1, NAN),
        (missed, "betti0_error", 1, 1),
    ):
        for absent, expected in (("penalise", penalised), ("ignore", ignored)):
            score = compute_measure(y_pred == 1, y == 1, measure, absent=absent)
            equal(score, [[expected]])
            metric = MeasureMetric(measure, reduction="none", absent=absent)
            metric(y_pred == 1, y == 1)
            equal(metric.aggregate(), [[expected]])
    # MONAI's own Dice agrees about which cases are left out
    for y, y_pred in (invented, missed):
        monais = compute_dice((y_pred == 1).float(), (y == 1).float(), include_background=True)
        equal(compute_measure(y_pred == 1, y == 1, "dice", absent="ignore"), monais.tolist())
    equal(compute_centerline_dice(*(mask == 1 for mask in missed), absent="ignore"), [[NAN]])
    equal(compute_betti_error(*(mask == 1 for mask in missed), 0, absent="ignore"), [[NAN]])


def test_spacing_of_a_batch_overrides_that_of_the_metric():
    metric = MeasureMetric("missed_centerline_mm", spacing=(1, 1), reduction="none")
    pred, reference = (PREDICTION == 1)[None], (REFERENCE == 1)[None]
    metric(pred, reference)
    metric(pred, reference, spacing=(1, 3))
    metric(list(pred), list(reference), spacing=(1, 5))
    equal(metric.aggregate(), [[3.5], [10.5], [17.5]])


def test_wrong_measure_spacing_and_convention_are_named():
    with pytest.raises(ValueError, match="measure must be one of dice, .*, got 'side_confusion'"):
        MeasureMetric("side_confusion")
    with pytest.raises(ValueError, match="betti2_error is about cavities, which 3D images have"):
        compute_measure(INDICES, INDICES, "betti2_error")
    with pytest.raises(ValueError, match=r"spacing must have 2 positive values, one an axis, got \[1, 2, 3\]"):
        compute_measure(INDICES, INDICES, "dice", spacing=(1, 2, 3))
    with pytest.raises(ValueError, match="absent must be 'penalise' or 'ignore', got 'drop'"):
        CenterlineDiceMetric(absent="drop")
