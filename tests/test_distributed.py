"""Two processes under torchrun do what one does, and end together."""

from __future__ import annotations

import csv
import os

import monai.bundle
import numpy as np
import pytest
import torch
import yaml
from bundle_data import CONFIGS, SMALL_BUDGET, SMALL_NETWORK_2D, files_of, two_nodes, two_processes, write_data
from PIL import Image

BUDGET = {**SMALL_BUDGET, **SMALL_NETWORK_2D, "epochs": 2, "iterations_per_epoch": 3, "balanced_share": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five cases, three of them held out; a run of one process and a run of two."""
    root = tmp_path_factory.mktemp("distributed")
    data = str(write_data("folder_2d", root / "data", count=5))
    files = files_of("train.yaml", "folder_2d.yaml")
    monai.bundle.run(run_id="training", config_file=files, dataset_dir=data, output_dir=str(root / "one"), **BUDGET)
    files = files_of("train.yaml", "folder_2d.yaml", "multi_gpu_train.yaml")
    done = two_processes("training", files, dataset_dir=data, output_dir=root / "two", **BUDGET)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Key metric: val_mean_dice best value") == 2  # of two epochs, by one of the processes
    return root


def test_two_processes_train_what_one_trains_from_the_same_batches(root):
    one, two = (torch.load(root / name / "last.pt", weights_only=True) for name in ("one", "two"))
    assert list(one["network"]) == list(two["network"]) and one["epoch"] == two["epoch"] == 2
    for name, value in one["network"].items():
        torch.testing.assert_close(two["network"][name], value, atol=1e-5, rtol=1e-5)
    assert sorted(os.listdir(root / "one")) == sorted(os.listdir(root / "two"))


def test_processes_wait_for_each_other_before_a_training_ends():
    """Without it one of them is killed now and then, see wait_for_all; too seldom to be provoked."""
    last = yaml.safe_load((CONFIGS / "multi_gpu_train.yaml").read_text())["finalize"]
    assert [step["_target_"].rpartition(".")[2] for step in last] == ["wait_for_all", "leave"]


def test_two_nodes_train_what_one_process_trains(root):
    files = files_of("train.yaml", "folder_2d.yaml", "multi_gpu_train.yaml")
    nodes = two_nodes("training", files, dataset_dir=root / "data", output_dir=root / "nodes", **BUDGET)
    assert [node.returncode for node in nodes] == [0, 0], nodes[0].stderr + nodes[1].stderr
    # the first of the two machines printed and wrote
    assert [node.stdout.count("Key metric: val_mean_dice best value") for node in nodes] == [2, 0]
    one, two = (torch.load(root / name / "last.pt", weights_only=True) for name in ("one", "nodes"))
    assert one["epoch"] == two["epoch"] == 2
    for name, value in one["network"].items():
        torch.testing.assert_close(two["network"][name], value, atol=1e-5, rtol=1e-5)


def test_scores_and_losses_of_two_processes_are_those_of_all_cases(root):
    for name in ("curve.csv", "validation/val_centerline_dice_raw.csv", "validation/val_mean_dice_raw.csv"):
        tables = [list(csv.DictReader(open(root / run / name))) for run in ("one", "two")]
        assert len(tables[0]) == len(tables[1]) == (2 if name == "curve.csv" else 3)
        for one, two in zip(*tables):
            assert one.keys() == two.keys()
            for column in one.keys() - {"minutes"}:
                if column == "filename":
                    assert one[column] == two[column]
                else:
                    assert float(two[column]) == pytest.approx(float(one[column]), rel=1e-4)


def test_two_processes_evaluate_what_one_evaluates(root):
    task = str(root / "one" / "task.yaml")
    knobs = {"dataset_dir": str(root / "data"), "overlap": 0.1, "pictures": 1}
    files = [*files_of("evaluate.yaml"), task]
    monai.bundle.run(run_id="evaluating", config_file=files, output_dir=str(root / "scores one"), **knobs)
    files = [*files, *files_of("multi_gpu_evaluate.yaml")]
    done = two_processes("evaluating", files, output_dir=root / "scores two", **knobs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("beta0 error") == 1
    for name in ("scores.csv", "summary.csv"):
        assert (root / "scores one" / name).read_text() == (root / "scores two" / name).read_text()


def test_error_of_one_process_ends_both_and_is_shown(root):
    """The last held-out label, which the second process validates, holds an unknown value."""
    data = write_data("folder_2d", root / "broken", count=5)
    held_out = (root / "two" / "validation" / "val_mean_dice_raw.csv").read_text().splitlines()[-1].split(",")[0]
    broken = data / "labels" / f"{os.path.basename(held_out).split('.')[0]}.png"
    broken = broken if broken.exists() else broken.with_suffix(".gif")
    label = np.asarray(Image.open(broken)).copy()
    label[0, 0] = 77
    Image.fromarray(label).save(broken)
    files = files_of("train.yaml", "folder_2d.yaml", "multi_gpu_train.yaml")
    done = two_processes("training", files, dataset_dir=data, output_dir=root / "failed", **BUDGET)
    assert done.returncode != 0
    summary = done.stderr[done.stderr.rindex("Root Cause") :]
    assert "77" in summary and broken.name in summary and "rank      : 1" in summary
