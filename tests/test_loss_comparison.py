"""Losses x seeds x folds in one table: what is run, what is resumed, what is counted."""

from __future__ import annotations

import csv
import json
import shutil
import time

import monai.bundle
import numpy as np
import pytest
import torch
import yaml
from bundle_data import CONFIGS, SMALL_BUDGET, SMALL_NETWORK_2D, command, files_of, write_data
from monai.data import MetaTensor
from monai.transforms import Compose
from PIL import Image

from monai_skelrec import list_cases, loss_comparison, panels, split_cases
from monai_skelrec.loss_table import LossRun, write_loss_table
from monai_skelrec.scores import score_label_maps

MEASURES = ["dice", "centerline_dice", "betti0_error", "betti1_error", "precision", "recall"]
BUDGET = {**SMALL_BUDGET, **SMALL_NETWORK_2D, "pictures": 0, "cache": "none"}


def compare(root, **knobs):
    monai.bundle.run(
        run_id="comparing",
        config_file=files_of("train.yaml", "folder_2d.yaml", "compare.yaml"),
        dataset_dir=str(root / "data"),
        output_dir=str(root / "table"),
        **{**BUDGET, "losses": ["dice_ce", "pieces"], "seeds": [0], "cost_steps": 0, **knobs},
    )


@pytest.fixture
def steps(monkeypatch):
    """What would be started in processes of their own is listed and leaves the files that say it is done."""
    listed = []

    def run(run_id, files, knobs, processes, what, log=None):
        listed.append((run_id, what, knobs))
        folder = knobs["output_dir"]
        folder.mkdir(parents=True, exist_ok=True)
        if run_id == "training":
            (folder / "config.yaml").write_text("")
            (folder / "last.pt").write_text("1")
        elif run_id == "evaluating":
            seed, loss = int(folder.parent.name[-1]), folder.parent.parent.name
            values = [0.1 * (case + seed) + (loss == "pieces") for case in (1, 2)]
            rows = [f"{folder.name} {at},foreground," + ",".join([str(value)] * 6) for at, value in enumerate(values)]
            (folder / "scores.csv").write_text("\n".join(["case,class," + ",".join(MEASURES), *rows, ""]))
        else:
            (folder / "cost.json").write_text(json.dumps({"seconds": 0.5, "memory_mib": 100.0}))

    monkeypatch.setattr(loss_comparison, "run_child", run)
    monkeypatch.setattr(loss_comparison, "finished_epochs", lambda folder: int((folder / "last.pt").is_file()))
    return listed


@pytest.fixture
def root(tmp_path):
    write_data("folder_2d", tmp_path / "data", count=4)
    return tmp_path


def rows_of(path):
    with open(path) as file:
        return {row["loss"]: row for row in csv.DictReader(file)}


def test_all_losses_of_a_seed_come_before_the_next_seed(root, steps):
    compare(root, seeds=[0, 1])
    assert [what for run_id, what, _ in steps if run_id == "training"] == [
        "dice_ce, seed 0, fold 0",
        "pieces, seed 0, fold 0",
        "dice_ce, seed 1, fold 0",
        "pieces, seed 1, fold 0",
    ]
    rows = rows_of(root / "table" / "table.csv")
    # cases 0.1 and 0.2, seeds 0 and 0.1 on top
    assert float(rows["dice_ce"]["dice_mean"]) == pytest.approx(0.2)
    assert float(rows["dice_ce"]["dice_std"]) == pytest.approx(0.1 / 2**0.5)
    assert float(rows["pieces"]["dice_mean"]) == pytest.approx(1.2)
    assert (root / "table" / "against_dice_ce" / "comparison.html").is_file()
    text = (root / "table" / "table.md").read_text()
    assert "pieces minus dice_ce: +1.000" in text and "4 of 4 scored runs" in text


def test_cases_that_failed_for_one_loss_count_for_none_and_are_scored_again(root, steps):
    compare(root, seeds=[0])
    (root / "table" / "dice_ce" / "fold_0_seed_0" / "report_0" / "summary.json").write_text(
        json.dumps({"errors": [{"case": "report_0 1", "error": "the prediction is missing"}]})
    )
    steps.clear()
    compare(root, seeds=[0])
    assert [what for run_id, what, _ in steps] == ["scoring of dice_ce, seed 0, fold 0"]
    rows = rows_of(root / "table" / "table.csv")
    assert float(rows["dice_ce"]["dice_mean"]) == pytest.approx(0.1)  # of 0.1 and 0.2
    assert float(rows["pieces"]["dice_mean"]) == pytest.approx(1.1)
    assert "cases 1;" in (root / "table" / "table.md").read_text()


def test_finished_runs_are_left_alone_and_others_go_on(root, steps):
    compare(root)
    steps.clear()
    table = root / "table"
    (table / "pieces" / "fold_0_seed_0" / "last.pt").unlink()
    (table / "dice_ce" / "fold_0_seed_0" / "report_0" / "scores.csv").unlink()
    compare(root, cost_steps=4)
    assert [(run_id, what) for run_id, what, _ in steps] == [
        ("evaluating", "scoring of dice_ce, seed 0, fold 0"),
        ("training", "pieces, seed 0, fold 0"),
        ("evaluating", "scoring of pieces, seed 0, fold 0"),  # what was there is of weights that are no more
        ("costing", "cost of dice_ce"),
        ("costing", "cost of pieces"),
    ]
    assert steps[1][2]["resume"] is True
    # what a loss costs is measured on weights that it trained
    assert steps[-1][2]["start_from"] == str(table / "pieces" / "fold_0_seed_0" / "last.pt")
    assert "| 0.500 | 100 |" in (table / "table.md").read_text()


def test_cases_of_other_folders_are_scored_whole(root, steps):
    elsewhere = str(root / "data")
    compare(root, report_on=["held_out", elsewhere], report_folders=["images", "accurate"], losses=["dice_ce"])
    scored = [knobs for run_id, _, knobs in steps if run_id == "evaluating"]
    assert "fold" not in scored[0] and scored[0]["dataset_dir"] == str(root / "data")
    assert (scored[1]["fold"], scored[1]["dataset_dir"]) == ("all", elsewhere)
    assert scored[1]["case_folders"] == ["images", "accurate"]
    assert "report_on ['held_out', " in (root / "table" / "table.md").read_text()


@pytest.mark.parametrize(
    "first, then",
    [
        ({}, {"report_on": ["data"]}),
        ({"report_on": ["held_out", "data"]}, {"report_on": ["data", "held_out"]}),
        ({"report_on": ["data"]}, {"report_on": ["data"], "report_folders": ["images", "accurate"]}),
        ({"overlap": 0.5}, {"overlap": 0.25}),
    ],
)
def test_scores_of_what_is_no_longer_asked_for_are_not_shown(first, then, root, steps, monkeypatch):
    monkeypatch.chdir(root)
    compare(root, **first)
    steps.clear()
    compare(root, **then)
    assert [run_id for run_id, _, _ in steps] == ["evaluating"] * 2 * len(then.get("report_on", ["held_out"]))
    steps.clear()
    compare(root, **then)
    assert steps == []


def test_scoring_that_was_interrupted_goes_on_with_its_label_maps(root, steps, monkeypatch):
    fake = loss_comparison.run_child

    def stop(run_id, files, knobs, processes, what, log=None):
        if run_id == "evaluating":
            (knobs["output_dir"] / "label_map").touch()
            raise RuntimeError("stopped")
        fake(run_id, files, knobs, processes, what, log)

    monkeypatch.setattr(loss_comparison, "run_child", stop)
    with pytest.raises(Exception) as error:
        compare(root)
    assert "2 of 2 runs failed" in str(error.value.__cause__ or error.value)
    monkeypatch.setattr(loss_comparison, "run_child", fake)
    compare(root)
    reports = [root / "table" / loss / "fold_0_seed_0" / "report_0" for loss in ("dice_ce", "pieces")]
    assert all((report / "label_map").is_file() and (report / "scores.csv").is_file() for report in reports)
    # those of other cases are of no use
    compare(root, report_on=[str(root / "data")])
    assert not any((report / "label_map").exists() for report in reports)


def test_another_budget_in_the_same_table_is_refused(root, steps):
    compare(root)
    with pytest.raises(Exception) as error:
        compare(root, epochs=2)
    assert "holds runs with another epochs, which would stand in one table" in str(error.value.__cause__ or error.value)


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"losses": ["dice"]}, "losses must be of dice_ce, .*got 'dice'; add it to loss_library"),
        ({"compared_folds": ["all"]}, "fold 'all' holds nothing out: set report_on to folders"),
        ({"losses": ["dice_ce", "dice_ce"]}, "each of losses must be named once, got 'dice_ce' twice"),
        ({"measures": ["dice", "cldice"]}, "measures must be some of dice, .*got cldice"),
        ({"report_on": ["nowhere"]}, "report_on must be 'held_out' or a folder of cases, got 'nowhere'"),
        ({"seeds": []}, "a comparison needs losses, seeds, compared_folds, report_on and at least 1 run"),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(knobs, message, root, steps):
    with pytest.raises(Exception) as error:
        compare(root, **knobs)
    with pytest.raises(Exception, match=message):
        raise error.value.__cause__ or error.value
    assert steps == []


def test_run_that_fails_does_not_cost_the_others_their_place(root, steps, monkeypatch):
    fake = loss_comparison.run_child

    def fail(run_id, files, knobs, processes, what, log=None):
        if what.startswith("dice_ce"):
            raise RuntimeError("dice_ce ended with code 1.")
        fake(run_id, files, knobs, processes, what, log)

    monkeypatch.setattr(loss_comparison, "run_child", fail)
    with pytest.raises(Exception) as error:
        compare(root, baselines=[])
    assert "1 of 2 runs failed, the table holds the others" in str(error.value.__cause__ or error.value)
    assert list(rows_of(root / "table" / "table.csv")) == ["pieces"]


def test_error_that_is_no_run_s_own_ends_the_comparison_at_once(root, steps, monkeypatch):
    def full(*_, **__):
        steps.append("begun")
        time.sleep(0.2 * (len(steps) > 1))
        raise OSError("no space left on the disk")

    monkeypatch.setattr(loss_comparison, "run_child", full)
    with pytest.raises(Exception) as error:
        compare(root, seeds=[0, 1, 2, 3, 4, 5])
    assert "no space left" in str(error.value.__cause__ or error.value)
    assert len(steps) < 6  # of twelve: one, and what began meanwhile


def test_cost_that_cannot_be_measured_costs_nobody_the_tests(root, steps, monkeypatch):
    fake = loss_comparison.run_child

    def fail(run_id, *others, **knobs):
        if run_id == "costing":
            raise RuntimeError("cost of pieces ended with code 137.")
        fake(run_id, *others, **knobs)

    monkeypatch.setattr(loss_comparison, "run_child", fail)
    with pytest.raises(Exception) as error:
        compare(root, seeds=[0, 1], cost_steps=4)
    assert "2 of its costs could not be measured" in str(error.value.__cause__ or error.value)
    assert "## Against dice_ce" in (root / "table" / "table.md").read_text()


def test_pictures_show_cases_of_any_part_of_the_report(root, steps, monkeypatch):
    """One loss cuts one held-out case a little, and a case of another folder more; predictions are else the labels."""
    fake = loss_comparison.run_child
    for file in (root / "data").rglob("*.*"):
        (root / "other" / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / "other" / file.parent.name / f"other {file.name}")

    def run(run_id, files, knobs, processes, what, log=None):
        fake(run_id, files, knobs, processes, what, log)
        folder = knobs["output_dir"]
        if run_id == "training":
            facts = yaml.safe_load((CONFIGS / "folder_2d.yaml").read_text())
            (folder / "task.yaml").write_text(yaml.safe_dump({**facts, "folds": 2, "fold": 0}))
        else:
            cases = list_cases("folder", knobs["dataset_dir"], 2)
            held_out = split_cases(cases, knobs.get("fold", 0), 2).held_out
            (folder / "predictions").mkdir()
            for at, case in enumerate(held_out):
                pred = np.array(Image.open(case["label"]).convert("L"))
                if what.startswith("scoring of pieces") and at == 0:
                    pred[: 30 if case["name"].startswith("other") else 20] = 0
                Image.fromarray(pred).save(folder / "predictions" / f"{case['name']}.png")
            score_label_maps(
                held_out,
                folder / "predictions",
                ".png",
                ["background", "x"],
                [0, 255],
                "error",
                folder,
                measures=MEASURES,
            )

    monkeypatch.setattr(loss_comparison, "run_child", run)
    compare(root, report_on=["held_out", str(root / "other")], pictures=2)
    text = (root / "table" / "table.md").read_text()
    shown = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![Case")]
    assert len(shown) == 2 and shown[0].startswith("pictures/other%20") and "other" not in shown[1]
    assert all((root / "table" / name.replace("%20", " ")).is_file() for name in shown)
    assert "## Against dice_ce" in text
    # a label map that is gone costs its pictures, not the table
    for path in (root / "table" / "dice_ce").rglob("predictions/*.png"):
        path.unlink()
    (root / "table" / "table.md").unlink()
    with pytest.raises(Exception) as error:
        compare(root, report_on=["held_out", str(root / "other")], pictures=2)
    assert "the prediction is missing" in str(error.value.__cause__ or error.value)
    text = (root / "table" / "table.md").read_text()
    assert "## Against dice_ce" in text and "![" not in text


def test_missing_matplotlib_stops_a_comparison_with_pictures_before_it_trains(root, steps, monkeypatch):
    monkeypatch.setattr(panels, "optional_import", lambda module: (None, False))
    with pytest.raises(Exception) as error:
        compare(root, pictures=1)
    assert "pictures need matplotlib" in str(error.value.__cause__ or error.value) and steps == []


def test_losses_differ_by_the_first_measure_where_clDice_is_none(root, steps, monkeypatch):
    given = []
    monkeypatch.setattr(loss_comparison, "draw_differences", lambda *args: given.append(args[4:]) or [])
    compare(root, pictures=0)
    compare(root, pictures=0, measures=["recall", "dice"])
    assert given == [(0, "centerline_dice"), (0, "recall")]


def test_only_seeds_that_every_loss_has_finished_count(tmp_path):
    runs = []
    for loss, seeds in (("a", (0, 1)), ("b", (0,))):
        for seed in seeds:
            folder = tmp_path / loss / f"fold_0_seed_{seed}"
            (folder / "report_0").mkdir(parents=True)
            (folder / "report_0" / "scores.csv").write_text(f"case,class,dice\n1,x,0.{seed + 1}\n")
            runs.append(LossRun(loss, seed, "0", folder))
    write_loss_table(tmp_path, runs, ["report_0"], ["dice"])
    rows = rows_of(tmp_path / "table.csv")
    assert float(rows["a"]["dice_mean"]) == float(rows["b"]["dice_mean"]) == 0.1


def test_loss_that_finds_nothing_is_named_under_the_table(tmp_path):
    runs = []
    for loss, recall, dice in (("blind", 0.04, 0.07), ("flooding", 0.9, 0.07)):
        folder = tmp_path / loss / "fold_0_seed_0"
        (folder / "report_0").mkdir(parents=True)
        (folder / "report_0" / "scores.csv").write_text(f"case,class,dice,recall\n1,x,{dice},{recall}\n")
        runs.append(LossRun(loss, 0, "0", folder))
    text = write_loss_table(tmp_path, runs, ["report_0"], ["dice", "recall"]).read_text()
    assert "**blind finds next to nothing** (recall 0.04): errors that count components, loops or false" in text
    assert "flooding finds" not in text
    assert "finds next to nothing" not in write_loss_table(tmp_path, runs, ["report_0"], ["dice"]).read_text()


def test_every_loss_of_the_library_takes_the_target_that_comes_with_it():
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    label[:, 4:28, 10:13] = 1
    for name, fragment in yaml.safe_load((CONFIGS / "compare.yaml").read_text())["loss_library"].items():
        parser = monai.bundle.ConfigParser()
        parser.read_config(files_of("train.yaml", "folder_2d.yaml", "compare.yaml"))
        for key, value in fragment.items():
            parser[key] = value
        steps = Compose(parser.get_parsed_content("train::skeletonize"))
        target = steps({"label": MetaTensor(label)})["label"][None]
        heads = [torch.zeros(1, 2, size, size, requires_grad=True) for size in (32, 16)]
        parser.get_parsed_content("loss")(heads, target).backward()
        assert all(torch.isfinite(head.grad).all() and head.grad.any() for head in heads), name


def test_command_trains_scores_resumes_and_measures(root):
    """The whole of it in processes, two losses with one seed; the second call starts nothing."""
    table = root / "table"
    arguments = ["comparing", "--config_file", str(files_of("train.yaml", "folder_2d.yaml", "compare.yaml"))]
    arguments += ["--dataset_dir", root / "data", "--output_dir", table, "--cost_steps", 4]
    for name, value in {
        **BUDGET,
        "pictures": 1,
        "cache": "memory",
        "losses": ["dice_ce", "pieces"],
        "seeds": [0],
    }.items():
        arguments += [f"--{name}", str(value)]
    done = command(*arguments, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "| pieces |" in done.stdout
    (picture,) = (table / "pictures").iterdir()
    assert f"](pictures/{picture.name})" in (table / "table.md").read_text()
    rows = rows_of(table / "table.csv")
    assert set(rows) == {"dice_ce", "pieces"}
    assert all(float(row["step_seconds"]) > 0 and float(row["memory_mib"]) > 0 for row in rows.values())
    curve = (table / "pieces" / "fold_0_seed_0" / "curve.csv").read_text()
    assert "piece_error" in curve
    assert "piece_error" not in (table / "dice_ce" / "fold_0_seed_0" / "curve.csv").read_text()
