"""The profile accounts for every step of a pipeline and every part of an iteration; times themselves are not tested."""

from __future__ import annotations

import csv
import time

import monai.bundle
import pytest
import torch
from bundle_data import SMALL_BUDGET, SMALL_NETWORK, files_of, write_data
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, Identityd, Lambdad, RandFlipd

from monai_skelrec.throughput import Profile, Row, measure_loading, measure_training


def busy(seconds):
    """Use the processor for a while."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_each_step_is_charged_with_its_own_time():
    def slow(image):
        busy(0.02)
        return image

    steps = Compose([Identityd("image"), RandFlipd("image", prob=0), Lambdad("image", slow), Identityd("image")])
    rows = measure_loading(lambda first: Dataset([{"image": torch.zeros(1, 4)}], first), steps, patches=3)
    assert [row.step.split(" ", 1)[1] for row in rows[1:]] == ["RandFlipd", "Lambdad", "Identityd", "collate"]
    assert rows[2].processor_ms >= 20 and rows[2] == max(rows, key=lambda row: row.processor_ms)


def trainer_of(iterations):
    def loss(pred, target):
        busy(0.02)
        return pred.mean()

    network = torch.nn.Linear(1, 1)
    data = [{"image": torch.ones(1), "label": torch.ones(1)}] * iterations
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return SupervisedTrainer(torch.device("cpu"), 1, DataLoader(data), network, optimizer, loss)


def test_parts_of_an_iteration_are_told_apart():
    rows, first_batch_s = measure_training(trainer_of(5))
    assert [row.step for row in rows[:3]] == ["wait for the batch", "to the device, forward", "loss"]
    assert rows[2].processor_ms >= 20 and rows[2] == max(rows, key=lambda row: row.processor_ms)
    assert 0 < first_batch_s < 5
    with pytest.raises(ValueError, match="a profile needs at least 4 iterations, got 3"):
        measure_training(trainer_of(3))


def test_workers_make_a_batch_while_the_network_uses_one():
    training = [Row("wait", 0, 500), Row("forward", 50, 100), Row("backward", 50, 200)]
    profile = Profile([Row("load", 400, 900)], [], training, batch_size=2, first_batch_s=1.0, on_gpu=True)
    # two patches of 0.4 s in 0.3 s
    assert profile.workers == 3


def test_bundle_command_writes_both_tables(tmp_path):
    monai.bundle.run(
        run_id="profiling",
        config_file=files_of("train.yaml", "profiling.yaml"),
        dataset_dir=str(write_data("topcow", tmp_path / "data")),
        output_dir=str(tmp_path / "profile"),
        **{**SMALL_BUDGET, **SMALL_NETWORK, "iterations_per_epoch": 4, "spacing": [1.0, 1.0, 1.0]},
        patches=2,
        naive_patches=1,
    )
    text = (tmp_path / "profile" / "profile.md").read_text()
    assert "loading process(es), a core each, feed it" in text and "RandPatchd" in text
    with open(tmp_path / "profile" / "profile.csv", newline="") as file:
        parts = {row["part"] for row in csv.DictReader(file)}
    assert parts == {"loading", "naive", "training"}
    assert not (tmp_path / "profile" / "model.pt").exists()
