"""Every fold is trained once, all held-out cases are scored together, and the networks vote."""

from __future__ import annotations

import csv

import monai.bundle
import pytest
import yaml
from bundle_data import SMALL_BUDGET, SMALL_NETWORK_2D, files_of, write_data

from monai_skelrec import child_runs, cross_validation
from monai_skelrec.checkpoints import finished_epochs

BUDGET = {**SMALL_BUDGET, **SMALL_NETWORK_2D, "iterations_per_epoch": 1}


def validate(root, **knobs):
    monai.bundle.run(
        run_id="cross_validating",
        config_file=files_of("train.yaml", "folder_2d.yaml", "cross_validation.yaml"),
        dataset_dir=str(root / "data"),
        output_dir=str(root / "folds"),
        **{**BUDGET, **knobs},
    )


@pytest.fixture
def steps(monkeypatch):
    """What would be started in processes of their own is run in this one, and listed."""
    listed = []

    def run(run_id, files, knobs, processes, what):
        listed.append((run_id, what, processes, knobs))
        if processes == 1:
            monai.bundle.run(
                run_id=run_id, config_file=[str(f) for f in files], **{k: _given(v) for k, v in knobs.items()}
            )

    def _given(value):
        return value if isinstance(value, (bool, int, float, str)) else str(value)

    monkeypatch.setattr(cross_validation, "run_child", run)
    return listed


def test_folds_are_trained_scored_together_and_joined(tmp_path, steps):
    write_data("folder_2d", tmp_path / "data", count=4)
    validate(tmp_path)
    folds = tmp_path / "folds"
    assert [(run_id, what) for run_id, what, *_ in steps] == [
        ("training", "fold 0"),
        ("training", "fold 1"),
        ("predicting", "prediction of fold 0"),
        ("predicting", "prediction of fold 1"),
        ("scoring", "scoring"),
    ]
    held_out = []
    for fold in range(2):
        facts = yaml.safe_load((folds / f"fold_{fold}" / "task.yaml").read_text())
        assert facts["fold"] == fold and finished_epochs(folds / f"fold_{fold}") == 1
        with open(folds / f"fold_{fold}" / "validation" / "val_mean_dice_raw.csv") as file:
            held_out += [row["filename"] for row in csv.DictReader(file)]
    assert len(set(held_out)) == len(held_out) == 4
    with open(folds / "evaluation" / "scores.csv") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"1", "2", "3", "4"}

    # finished folds are left alone; one that is to be longer is resumed
    steps.clear()
    (folds / "fold_1" / "last.pt").unlink()
    validate(tmp_path)
    assert [what for _, what, *_ in steps] == ["fold 1", *["prediction of fold 0", "prediction of fold 1", "scoring"]]
    assert steps[0][-1]["resume"] is True

    monai.bundle.run(
        run_id="inferring",
        config_file=[*files_of("inference.json"), str(folds / "ensemble" / "task.yaml")],
        dataset_dir=str(tmp_path / "data" / "images"),
        output_dir=str(tmp_path / "label maps"),
    )
    assert len(list((tmp_path / "label maps").iterdir())) == 4


def test_several_processes_train_a_fold_under_torchrun(monkeypatch):
    commands = []

    class Done:
        returncode = 0

    monkeypatch.setattr(child_runs.subprocess, "run", lambda command, **_: commands.append(command) or Done())
    child_runs.run_child("training", ["a.yaml"], {"fold": 1}, processes=2, what="fold 1")
    child_runs.run_child("scoring", ["a.yaml"], {"fold": "all"}, processes=1, what="scoring")
    assert commands[0][1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert commands[0][5:] == ["-m", "monai.bundle", "run", "training", "--config_file", "['a.yaml']", "--fold", "1"]
    assert commands[1][1:] == ["-m", "monai.bundle", "run", "scoring", "--config_file", "['a.yaml']", "--fold", "all"]


def test_fold_that_fails_stops_the_others(monkeypatch):
    class Failed:
        returncode = 3

    monkeypatch.setattr(child_runs.subprocess, "run", lambda command, **_: Failed())
    with pytest.raises(RuntimeError, match="fold 1 ended with code 3, its error stands above; mend its cause and"):
        child_runs.run_child("training", [], {}, processes=1, what="fold 1")
