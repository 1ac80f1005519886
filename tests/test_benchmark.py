"""The benchmark measures what it says, and running out of memory or time is a row of its tables."""

from __future__ import annotations

import csv
import sys
from functools import partial
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.networks.nets import DynUNet
from PIL import Image

from monai_skelrec.benchmark import LOSSES, RIVALS, published_recall, run_benchmark
from monai_skelrec.losses import SkeletonRecallLoss

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
NETWORK = partial(
    DynUNet,
    spatial_dims=3,
    in_channels=1,
    kernel_size=[3, 3, 3],
    strides=[1, 2, 2],
    upsample_kernel_size=[2, 2],
    filters=[2, 4, 4],
)


def measure(folder, **options):
    few = {"patch_size": [16, 16, 16], "classes": [2], "batch_sizes": [1], "devices": ["cpu"], "repeats": 1}
    return run_benchmark(folder, **{**few, **options})


def test_each_case_is_a_row_and_the_picture_is_drawn(tmp_path):
    rows = measure(tmp_path, classes=[2, 3], network=NETWORK, step_classes=[2], step_batch_sizes=[2])
    assert [(case.what, case.n_classes, case.loss) for case, _ in rows] == [
        *(("loss", n, name) for n in (2, 3) for name in LOSSES),
        *(("training step", 2, name) for name in LOSSES),
    ]
    assert all(cost.seconds > 0 and not cost.failure for _, cost in rows)
    with open(tmp_path / "benchmark.csv") as file:
        written = list(csv.DictReader(file))
    assert [row["loss"] for row in written] == [case.loss for case, _ in rows]
    assert written[0]["patch_size"] == "16x16x16"
    text = (tmp_path / "benchmark.md").read_text()
    assert "**loss, cpu, batch size 1, 16 x 16 x 16 voxels**" in text
    assert "**training step, cpu, batch size 2, 16 x 16 x 16 voxels**" in text
    assert "(1." in text or "(0." in text
    assert Image.open(tmp_path / "benchmark.png").size == (1100, 840)


def test_the_rivals_are_measured_when_they_are_named(tmp_path):
    rows = measure(tmp_path, classes=[3], losses=[LOSSES[0], *RIVALS], cldice_iterations=1)
    assert [case.loss for case, _ in rows] == [LOSSES[0], *RIVALS]
    assert all(cost.seconds > 0 and not cost.failure for _, cost in rows)
    assert f"| classes | {' | '.join([LOSSES[0], *RIVALS])} |" in (tmp_path / "benchmark.md").read_text()
    # the default list, here and in the config, stays short
    config = monai.bundle.ConfigParser.load_config_file(CONFIGS / "benchmark.yaml")
    assert config["losses"] == list(LOSSES) and not set(LOSSES) & set(RIVALS)


def test_the_bundle_runs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # a run replaces it
    small = {"classes": [2], "batch_sizes": [1], "patch_size": [16, 16, 16], "step_patch_size": [64, 32, 16]}
    monai.bundle.run(
        "benchmarking",
        config_file=str(CONFIGS / "benchmark.yaml"),
        output_dir=str(tmp_path),
        devices=["cpu"],
        repeats=1,
        step_classes=[2],
        filters=[2, 2, 2, 2, 2, 2],
        losses=list(LOSSES[:2]),
        **small,
    )
    assert "**training step, cpu, batch size 2, 64 x 32 x 16 voxels**" in capsys.readouterr().out
    assert (tmp_path / "benchmark.png").is_file()


def test_memory_grows_with_what_a_loss_holds(tmp_path):
    rows = measure(tmp_path, patch_size=[64, 64, 64], classes=[8], losses=LOSSES[:2])
    dice_ce, ours = (cost.mebibytes for _, cost in rows)
    gradient = 8 * 64**3 * 4 / 2**20
    assert gradient * 0.9 < ours < dice_ce


@pytest.mark.parametrize(
    "limit, failure",
    [({"memory_limit": 0.2}, "out of memory"), ({"time_limit": 0}, "over 0 s")],
    ids=["memory", "time"],
)
def test_a_measurement_that_cannot_be_made_is_a_row(tmp_path, limit, failure):
    rows = measure(tmp_path, patch_size=[256, 256, 256], losses=LOSSES[:2], **limit)
    assert [cost.failure for _, cost in rows] == [failure, failure]
    assert f"| 2 | {failure} | {failure} |" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.png").is_file()


def test_unknown_loss_is_named(tmp_path):
    with pytest.raises(ValueError, match="losses must be of Dice .*; SCNP; got focal"):
        measure(tmp_path, losses=["focal"])


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path):
    with pytest.raises(RuntimeError, match="measuring Dice .* with 2 classes failed: .*nowhere"):
        measure(tmp_path, devices=["nowhere"], losses=LOSSES[:1])


def test_published_recall_equals_ours_where_absent_classes_count():
    torch.manual_seed(0)
    logits, tube = torch.randn(2, 4, 6, 7), torch.randint(0, 3, (2, 1, 6, 7))
    ours = SkeletonRecallLoss(softmax=True, to_onehot_y=True, absent="count")
    torch.testing.assert_close(published_recall(logits, tube), ours(logits, tube))
