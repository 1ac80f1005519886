"""Scoring of whole folders: all measures, results that are kept, processes, and the bundle's command."""

from __future__ import annotations

import csv
import json
import math
import os

import monai.bundle
import nibabel
import numpy as np
import pytest
from bundle_data import CONFIGS, command

from monai_skelrec import scores as scoring
from monai_skelrec.mask_measures import MASK_MEASURES, measure_masks
from monai_skelrec.measures import MEASURES
from monai_skelrec.scores import MERGED, match_label_maps, require_all_scored, score_case, score_label_maps

NAMES = ["background", "BA", "R-PCA", "L-PCA"]
VALUES = [0, 1, 2, 3]
SPACING = (2.0, 1.0, 0.5)

# lines one voxel wide, along the first axis: they are their own centrelines; edges are 2 mm long
REFERENCE = np.zeros((20, 12, 5), np.uint8)
REFERENCE[2:18, 1, 2] = 1
REFERENCE[2:18, 5, 2] = 2
REFERENCE[2:18, 9, 2] = 3
# BA has a gap of 3; the second half of R-PCA is called L-PCA; L-PCA is right and has that half besides
PREDICTION = REFERENCE.copy()
PREDICTION[8:11, 1, 2] = 0
PREDICTION[10:18, 5, 2] = 3

DIAGONAL = math.hypot(20 * 2, 12, 5 * 0.5)


def by_class(rows):
    return {row["class"]: row for row in rows}


def test_every_measure_counted_by_hand():
    found = by_class(score_case(PREDICTION, REFERENCE, NAMES, VALUES, spacing=SPACING))
    assert all(list(row) == ["class", *MEASURES] for row in found.values())
    ba = found["BA"]
    assert (ba["breaks"], ba["false_merges"], ba["false_contacts"]) == (1, 0, 0)
    # 2 edges within the gap, and half of the two that lead into it
    assert ba["missed_centerline_mm"] == pytest.approx(3 * 2) and ba["false_centerline_mm"] == 0
    assert (ba["centerline_precision"], ba["centerline_sensitivity"]) == (1, 13 / 16)
    assert ba["betti0_error"] == 1 and ba["radius_error_mm"] == 0 and math.isnan(ba["side_confusion"])
    # no surface voxel of the prediction is new; two of the reference's 16 are 2 mm away, one 4 mm
    assert ba["surface_distance_mm"] == pytest.approx((2 + 2 + 4) / (13 + 16))
    # position 0.95 * 15 = 14.25 of the 16 sorted distances 0 .. 0, 2, 2, 4
    assert ba["hausdorff95_mm"] == pytest.approx(2 + 0.25 * 2)
    right, left = found["R-PCA"], found["L-PCA"]
    assert right["side_confusion"] == 8 / 16 and left["side_confusion"] == 0
    assert (right["breaks"], right["missed_centerline_mm"]) == (0, 7.5 * 2)
    assert (left["false_contacts"], right["false_contacts"]) == (1, 1)  # they touch where one goes on as the other
    assert left["false_centerline_mm"] == pytest.approx(7 * 2)
    assert math.isnan(found[MERGED]["false_contacts"]) and math.isnan(found[MERGED]["side_confusion"])
    assert found[MERGED]["breaks"] == 1


def test_class_in_one_map_only_is_penalised():
    invented, missing = np.where(REFERENCE == 1, 0, REFERENCE), REFERENCE
    for pred, reference, missed, false in ((invented, missing, 30, 0), (missing, invented, 0, 30)):
        row = by_class(score_case(pred, reference, NAMES, VALUES, spacing=SPACING))["BA"]
        assert (
            row["dice"] == row["centerline_dice"] == row["centerline_precision"] == row["centerline_sensitivity"] == 0
        )
        assert row["hausdorff95_mm"] == row["surface_distance_mm"] == pytest.approx(DIAGONAL)
        assert (row["missed_centerline_mm"], row["false_centerline_mm"]) == (missed, false)
        assert row["breaks"] == row["false_merges"] == 0 and math.isnan(row["radius_error_mm"])


def test_measures_alone_are_what_they_are_together():
    pred, reference = PREDICTION == 1, REFERENCE == 1
    together = measure_masks(pred, reference, spacing=SPACING)
    assert list(together) == list(MASK_MEASURES)
    for name in MASK_MEASURES:
        assert measure_masks(pred, reference, [name], SPACING) == {name: together[name]}


def test_prediction_that_swallows_two_branches_merges_them():
    """It is so thick that its centreline runs between them, and there is no bridge to point at."""
    reference = np.zeros((30, 7, 3), bool)
    reference[2:28, 1] = reference[2:28, 5] = True
    pred = np.zeros_like(reference)
    pred[2:28, 1:6] = True
    assert measure_masks(pred, reference, ["false_merges"]) == {"false_merges": 1}


def test_voxels_without_a_size_count_one_and_wrong_sizes_are_named():
    rows = by_class(score_case(PREDICTION, REFERENCE, NAMES, VALUES))
    assert rows["BA"]["missed_centerline_mm"] == 3
    with pytest.raises(ValueError, match=r"spacing must have 3 positive values, one an axis, got \[1, 1\]"):
        score_case(PREDICTION, REFERENCE, NAMES, VALUES, spacing=(1, 1))
    with pytest.raises(ValueError, match="measures must be some of dice, .*, got cldice"):
        score_case(PREDICTION, REFERENCE, NAMES, VALUES, measures=["dice", "cldice"])


# --- folders ---------------------------------------------------------------------------------------------------------


def write(path, array, spacing=SPACING):
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1])), path)


@pytest.fixture
def folders(tmp_path):
    for name in "abc":
        write(tmp_path / "predictions" / f"{name}_0000.nii", PREDICTION if name == "a" else REFERENCE)
        write(tmp_path / "references" / f"{name}.nii.gz", REFERENCE)
    return tmp_path


def score(folders, **changes):
    matched = match_label_maps(folders / "predictions", folders / "references")
    arguments = {"class_names": NAMES, "label_values": VALUES, "other_values": "error", "output_dir": folders / "out"}
    return score_label_maps(matched, None, "", **{**arguments, **changes})


def test_spacing_comes_from_the_files_else_from_the_task(folders):
    rows = score(folders).rows
    assert rows[0]["missed_centerline_mm"] == 6
    for name in "abc":
        os.remove(folders / "references" / f"{name}.nii.gz")
        os.remove(folders / "predictions" / f"{name}_0000.nii")
        np.save(folders / "references" / f"{name}.npy", REFERENCE)
        np.save(folders / "predictions" / f"{name}.npy", PREDICTION)
    assert score(folders).rows[0]["missed_centerline_mm"] == 3
    assert score(folders, voxel_size=(4, 1, 1)).rows[0]["missed_centerline_mm"] == 12


def test_processes_give_the_same_tables(folders):
    one, many = score(folders), score(folders, workers=2, output_dir=folders / "many")
    for name in ("scores.csv", "summary.csv", "summary.json"):
        assert (folders / "many" / name).read_text() == (folders / "out" / name).read_text()
    np.testing.assert_equal(many.rows, one.rows)


def test_what_was_scored_is_not_scored_again_unless_it_changed(folders, monkeypatch):
    first = score(folders)
    seen = []

    def spy(*arguments):
        seen.append(os.path.basename(arguments[0])[0])
        return {"rows": [], "error": "spied"}

    monkeypatch.setattr(scoring, "_score_files", spy)
    np.testing.assert_equal(score(folders).rows, first.rows)
    assert seen == []
    write(folders / "predictions" / "b_0000.nii", PREDICTION)
    (folders / "out" / "cases" / "c.json").write_text('{"key": "dama')
    score(folders)
    assert seen == ["b", "c"]
    seen.clear()
    score(folders, voxel_size=(1, 1, 2))
    assert seen == ["a", "b", "c"]


def test_failed_case_is_tried_again(folders):
    good = (folders / "predictions" / "b_0000.nii").read_bytes()
    (folders / "predictions" / "b_0000.nii").write_bytes(good[:400])
    assert [error["case"] for error in score(folders).errors] == ["b"]
    (folders / "predictions" / "b_0000.nii").write_bytes(good)
    assert score(folders).errors == []


def test_partial_folders_are_reported_and_forgiven_on_demand(folders):
    os.remove(folders / "predictions" / "c_0000.nii")
    found = score(folders)
    with pytest.raises(ValueError, match="1 case could not be scored, the others were: c: the prediction is missing: "):
        require_all_scored(found)
    assert {row["case"] for row in found.rows} == {"a", "b"}
    assert require_all_scored(score(folders, partial=True)).errors == []
    content = json.loads((folders / "out" / "summary.json").read_text())
    assert content["cases"] == {"given": 2, "scored": 2} and content["unmatched"][0].startswith("c: the prediction is")
    assert content["measures"]["breaks"]["higher_is_better"] is False


def test_wrong_options_are_named(folders):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        score(folders, workers=0)


def test_the_command_scores_what_it_can_names_what_it_cannot_and_fails(folders):
    """A real process: one file is damaged, one of another grid, one has an unknown value, one no reference."""
    (folders / "predictions" / "damaged.nii.gz").write_bytes(b"no nifti")
    write(folders / "predictions" / "elsewhere.nii.gz", REFERENCE, (2.0, 1.0, 0.8))
    write(folders / "predictions" / "unknown.nii.gz", REFERENCE * 3)
    for name in ("damaged", "elsewhere", "unknown"):
        write(folders / "references" / f"{name}.nii.gz", REFERENCE)
    write(folders / "predictions" / "alone.nii.gz", REFERENCE)
    arguments = ["scoring", "--config_file", CONFIGS / "score.yaml", "--class_names", str(NAMES)]
    arguments += ["--label_values", str(VALUES), "--predictions_dir", "predictions", "--references_dir", "references"]
    done = command(*arguments, "--workers", "1", cwd=folders)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: 4 cases could not be scored, the others were: ")
    for sentence in (
        "damaged.nii.gz cannot be read",
        "got spacing (2, 1, 0.8) and (2, 1, 0.5)",
        "not in label_values: 6, 9",
    ):
        assert sentence in last
    assert "alone: the reference is missing" in last
    with open(folders / "scores" / "scores.csv", newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"a", "b", "c"}
    assert "L-PCA" in done.stdout


def test_a_whole_folder_is_scored_in_a_process_that_lives_on(folders, capsys):
    monai.bundle.run(
        run_id="scoring",
        config_file=str(CONFIGS / "score.yaml"),
        class_names=NAMES,
        label_values=VALUES,
        predictions_dir=str(folders / "predictions"),
        references_dir=str(folders / "references"),
        output_dir=str(folders / "scores"),
        workers=1,
    )
    assert "L-PCA" in capsys.readouterr().out and (folders / "scores" / "summary.csv").is_file()
