"""MLflow by the bundle's own --tracking, where it is installed."""

from __future__ import annotations

import sqlite3

import pytest
from bundle_data import SMALL_BUDGET, SMALL_NETWORK_2D, command, files_of, write_data

pytest.importorskip("mlflow")


def test_losses_and_scores_of_a_training_reach_mlflow(tmp_path):
    data, run = write_data("folder_2d", tmp_path / "data"), tmp_path / "run"
    arguments = ["training", "--config_file", str(files_of("train.yaml", "folder_2d.yaml")), "--dataset_dir", data]
    arguments += ["--output_dir", run, "--tracking", "mlflow", "--experiment_name", "roads"]
    for name, value in {**SMALL_BUDGET, **SMALL_NETWORK_2D, "epochs": 2}.items():
        arguments += [f"--{name}", value]
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(run / "mlruns.db") as store:
        (experiment,) = store.execute("select name from experiments where name != 'Default'").fetchall()
        rows = store.execute("select key, step, value from metrics").fetchall()
    assert experiment == ("roads",)
    steps = {}
    for key, step, value in rows:
        steps.setdefault(key, {})[step] = value
    scores = {"val_mean_dice", "val_centerline_dice", "val_betti_0_error", "val_betti_1_error"}
    assert scores <= steps.keys() and all(len(steps[name]) == 2 for name in scores)
    (loss,) = [key for key in steps if "loss" in key]
    assert len(steps[loss]) == 4 and all(value > 0 for value in steps[loss].values())
