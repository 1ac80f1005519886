"""A training that is killed again and again, at any moment, ends as one that was left alone."""

from __future__ import annotations

import csv
import multiprocessing
import random
import time

import monai.bundle
import pytest
import torch
from bundle_data import SMALL_BUDGET, SMALL_NETWORK_2D, files_of, write_data

KILLS = 10
EPOCHS = 20


def train(data, run, resume):
    monai.bundle.run(
        run_id="training",
        config_file=files_of("train.yaml", "folder_2d.yaml"),
        dataset_dir=str(data),
        output_dir=str(run),
        resume=resume,
        **{**SMALL_BUDGET, **SMALL_NETWORK_2D, "epochs": EPOCHS, "val_interval": 5, "pictures": 1},
    )


def start(*arguments):
    # forked from a process that has imported everything: a new one would spend most of its life on that
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["monai.bundle", "monai_skelrec.curves", "monai_skelrec.checkpoints"])
    process = context.Process(target=train, args=arguments)
    process.start()
    return process


def epochs_of(run):
    """Epochs in the checkpoint; whatever checkpoint is there must be whole."""
    for name in ("model.pt", "last.pt", "previous.pt"):
        if (run / name).is_file():
            torch.load(run / name, weights_only=True)
    for name in ("last.pt", "previous.pt"):
        if (run / name).is_file():
            return torch.load(run / name, weights_only=True)["epoch"]
    return 0


def written(run):
    """When the last checkpoint was."""
    return (run / "last.pt").stat().st_mtime_ns if (run / "last.pt").exists() else 0


@pytest.mark.slow
def test_run_killed_ten_times_equals_one_that_was_left_alone(tmp_path):
    data = write_data("folder_2d", tmp_path / "data", count=4)
    start(data, tmp_path / "first", False).join()  # makes the process that the others fork from
    began = time.perf_counter()
    process = start(data, tmp_path / "whole", False)
    while not (tmp_path / "whole" / "last.pt").is_file():
        time.sleep(0.02)
    ready = time.perf_counter() - began
    process.join()
    epoch = (time.perf_counter() - began - ready) / (EPOCHS - 1)

    run, moments, reached = tmp_path / "killed", random.Random(0), [0]
    for kill in range(KILLS):
        process = start(data, run, (run / "config.yaml").is_file())
        if kill % 2:  # an epoch or two after it went on
            before = written(run)
            while written(run) == before:
                time.sleep(0.02)
            process.join(moments.uniform(0, 2 * epoch))
        else:  # while it starts, or goes on
            process.join(moments.uniform(0, 1.2 * ready))
        assert process.exitcode is None
        process.kill()
        process.join()
        reached.append(epochs_of(run))
    assert reached == sorted(reached)
    print(f"{ready:.1f} s to the first epoch, {epoch:.2f} s for each other; killed after {reached[1:]} epochs")
    assert 0 < reached[-1] < EPOCHS
    last = start(data, run, True)
    last.join()
    assert last.exitcode == 0

    whole, killed = (torch.load(folder / "last.pt", weights_only=True) for folder in (tmp_path / "whole", run))
    assert killed["epoch"] == EPOCHS and killed["best_metric"] == whole["best_metric"]
    for name, value in whole["network"].items():
        assert torch.equal(value, killed["network"][name]), name
    curves = [list(csv.DictReader(open(folder / "curve.csv"))) for folder in (tmp_path / "whole", run)]
    assert [row["epoch"] for row in curves[1]] == [str(epoch) for epoch in range(1, EPOCHS + 1)]
    assert [row["loss"] for row in curves[0]] == [row["loss"] for row in curves[1]]
    best = [torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path / "whole", run)]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())
    assert not list(run.glob(".*.pt.*"))
