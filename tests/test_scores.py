"""Label maps on disk -> tables, with every number counted by hand and every mishap named."""

from __future__ import annotations

import csv
import json
import math

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_skelrec.scores import (
    AVERAGE,
    CONVENTIONS,
    MERGED,
    format_table,
    require_all_scored,
    score_case,
    score_label_maps,
)
from monai_skelrec.summaries import average_cases

NAMES = ["background", "artery", "vein", "nerve"]
COUNTED = ["dice", "centerline_dice", "betti0_error", "betti1_error", "betti2_error"]
VALUES = [0, 1, 5, 9]

# lines one voxel wide: they are their own centrelines
REFERENCE = np.zeros((12, 9, 5), dtype=np.uint8)
REFERENCE[1:9, 1, 2] = 1
REFERENCE[1:9, 5, 2] = 5
# the artery's second half is missed, the vein is cut in two and loses 1 of 8, two nerves are invented
PREDICTION = REFERENCE.copy()
PREDICTION[5:9, 1, 2] = 0
PREDICTION[4, 5, 2] = 0
PREDICTION[[2, 6], 7, 2] = 9


def row(name: str, dice: float, centerline_dice: float, *betti: float) -> dict:
    scores = {"dice": pytest.approx(dice, nan_ok=True), "centerline_dice": pytest.approx(centerline_dice, nan_ok=True)}
    errors = {f"betti{dim}_error": pytest.approx(error, nan_ok=True) for dim, error in enumerate(betti)}
    return {"class": name, **scores, **errors}


HALF = 2 * 4 / (4 + 8)  # precision 1, sensitivity 1/2; Dice and centreline Dice agree on lines
CUT = 2 * 7 / (7 + 8)
ALL = 2 * 11 / (13 + 16)
EXPECTED = [
    row("artery", HALF, HALF, 0, 0, 0),
    row("vein", CUT, CUT, 1, 0, 0),
    row("nerve", 0, 0, 2, 0, 0),
    # 5 pieces against 2
    row(MERGED, ALL, ALL, 3, 0, 0),
]


def test_case_counted_by_hand():
    before = PREDICTION.copy(), REFERENCE.copy()
    assert score_case(PREDICTION, REFERENCE, NAMES, VALUES, measures=COUNTED) == EXPECTED
    assert (PREDICTION == before[0]).all() and (REFERENCE == before[1]).all()


def test_background_around_the_foreground_changes_nothing():
    pred, reference = (
        np.asfortranarray(np.pad(array, ((30, 3), (2, 40), (0, 9)))) for array in (PREDICTION, REFERENCE)
    )
    assert score_case(pred, reference, NAMES, VALUES, measures=COUNTED) == EXPECTED


def test_class_in_neither_map_has_no_row_and_an_empty_case_scores_nan():
    assert [entry["class"] for entry in score_case(REFERENCE, REFERENCE, NAMES, VALUES)] == ["artery", "vein", MERGED]
    empty = np.zeros((4, 4, 4), dtype=int)
    nan = math.nan
    assert score_case(empty, empty, NAMES, VALUES, measures=COUNTED) == [row(MERGED, nan, nan, nan, nan, nan)]


def test_case_in_2d_has_holes_instead_of_loops_and_cavities():
    ring = np.pad(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), 1)
    filled = np.pad(np.ones((3, 3), int), 1)
    scores, merged = score_case(filled, ring, ["background", "road"], [0, 1], measures=COUNTED)
    assert set(scores) == {"class", "dice", "centerline_dice", "betti0_error", "betti1_error"}
    assert (scores["betti0_error"], scores["betti1_error"]) == (0, 1)
    assert scores["dice"] == merged["dice"] == pytest.approx(16 / 17)


def test_values_that_are_not_listed_are_background_when_asked():
    stray = np.where(REFERENCE == 0, 3, REFERENCE)
    stray[0, 0, 0] = 0
    with pytest.raises(ValueError, match="not in label_values: 3; list them, or set other_values to 'background'"):
        score_case(stray, REFERENCE, NAMES, VALUES)
    scores = score_case(stray, REFERENCE, NAMES, VALUES, other_values="background")
    assert scores == score_case(REFERENCE, REFERENCE, NAMES, VALUES)


@pytest.mark.parametrize(
    "pred, names, values, message",
    [
        (PREDICTION[1:], NAMES, VALUES, r"of one shape, got \(11, 9, 5\) and \(12, 9, 5\)"),
        (PREDICTION, NAMES[1:], VALUES, r"got 3 names and values \[0, 1, 5, 9\]"),
        (PREDICTION, NAMES, [0, 1, 5, 5], r"each with a value of its own, got 4 names and values \[0, 1, 5, 5\]"),
        (PREDICTION, ["background"], [0], "background and at least one class"),
    ],
)
def test_what_does_not_fit_is_named(pred, names, values, message):
    with pytest.raises(ValueError, match=message):
        score_case(pred, REFERENCE, names, values)


# --- folders --------------------------------------------------------------------------------------------------------


def write(path, array):
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


@pytest.fixture
def folder(tmp_path):
    """Case "a" is the one above, case "b" is perfect and has an artery only."""
    only_artery = np.where(REFERENCE == 1, REFERENCE, 0)
    for name, pred, reference in (("a", PREDICTION, REFERENCE), ("b", only_artery, only_artery)):
        write(tmp_path / "predictions" / f"{name}.nii.gz", pred)
        write(tmp_path / "labels" / f"{name}.nii.gz", reference)
    return tmp_path


def score(folder, names="ab", **changes):
    arguments = {
        "cases": [{"name": name, "label": str(folder / "labels" / f"{name}.nii.gz")} for name in names],
        "predictions_dir": str(folder / "predictions"),
        "output_ext": ".nii.gz",
        "class_names": NAMES,
        "label_values": VALUES,
        "other_values": "error",
        "output_dir": str(folder / "out"),
        "measures": COUNTED,
    }
    return score_label_maps(**{**arguments, **changes})


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_folder_gives_rows_per_case_and_class(folder):
    scores = score(folder)
    assert scores.errors == []
    perfect = [row("artery", 1, 1, 0, 0, 0), row(MERGED, 1, 1, 0, 0, 0)]
    assert scores.rows == [{"case": "a", **entry} for entry in EXPECTED] + [{"case": "b", **entry} for entry in perfect]
    assert require_all_scored(scores) is scores


def test_summary_is_over_cases_and_the_average_over_classes_first(folder):
    summary = {entry["class"]: entry for entry in score(folder).summary}
    assert list(summary) == ["artery", "vein", "nerve", AVERAGE, MERGED]
    assert [entry["cases"] for entry in summary.values()] == [2, 1, 1, 2, 2]
    assert summary["artery"]["dice_mean"] == pytest.approx((HALF + 1) / 2)
    # sample standard deviation of two values
    assert summary["artery"]["dice_std"] == pytest.approx((1 - HALF) / math.sqrt(2))
    assert summary["vein"]["betti0_error_mean"] == 1
    assert math.isnan(summary["vein"]["betti0_error_std"])
    assert summary[AVERAGE]["centerline_dice_mean"] == pytest.approx(((HALF + CUT + 0) / 3 + 1) / 2)
    assert summary[AVERAGE]["betti0_error_mean"] == pytest.approx(((0 + 1 + 2) / 3 + 0) / 2)
    assert summary[MERGED]["dice_mean"] == pytest.approx((ALL + 1) / 2)


def test_class_in_no_case_stays_in_the_summary_without_a_score(folder):
    scores = score(folder, names="b")
    vein = next(entry for entry in scores.summary if entry["class"] == "vein")
    assert vein["cases"] == 0 and math.isnan(vein["dice_mean"])
    assert "vein" in format_table(scores.summary)


def test_tables_on_disk_hold_the_same_and_leave_nothing_beside_them(folder):
    scores = score(folder)
    out = folder / "out"
    assert sorted(path.name for path in out.iterdir()) == ["cases", "scores.csv", "summary.csv", "summary.json"]
    read = table(out / "scores.csv")
    assert [(entry["case"], entry["class"]) for entry in read] == [(e["case"], e["class"]) for e in scores.rows]
    assert float(read[1]["centerline_dice"]) == pytest.approx(CUT)
    assert list(read[0])[:3] == ["case", "class", "dice"] and list(read[0])[-1] == "betti2_error"
    read = table(out / "summary.csv")
    assert [int(entry["cases"]) for entry in read] == [2, 1, 1, 2, 2]
    assert float(read[0]["dice_mean"]) == scores.summary[0]["dice_mean"]
    content = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert content["cases"] == {"given": 2, "scored": 2} and content["errors"] == []
    assert content["conventions"] == CONVENTIONS
    assert content["summary"][0]["dice_mean"] == scores.summary[0]["dice_mean"]
    assert content["summary"][1]["dice_std"] is None


def test_reference_may_be_numpy_while_the_prediction_is_nifti(folder):
    np.save(folder / "labels" / "a.npy", REFERENCE)
    scores = score(folder, cases=[{"name": "a", "label": str(folder / "labels" / "a.npy")}])
    assert scores.rows == [{"case": "a", **entry} for entry in EXPECTED]


def test_pictures_are_scored_in_rows_and_columns(tmp_path):
    reference = np.zeros((6, 20), dtype=np.uint8)
    reference[2, 2:18] = 255
    pred = reference.copy()
    pred[2, 10:] = 0
    Image.fromarray(reference).convert("1").save(tmp_path / "a.gif")
    Image.fromarray(pred).save(tmp_path / "a.png")
    scores = score(
        tmp_path,
        cases=[{"name": "a", "label": str(tmp_path / "a.gif")}],
        predictions_dir=tmp_path,
        output_ext=".png",
        class_names=["background", "vessel"],
        label_values=[0, 255],
    )
    assert scores.errors == []
    assert scores.rows[0]["dice"] == pytest.approx(2 * 8 / (8 + 16))
    assert "betti2_error_mean" not in scores.summary[0]


def test_cases_that_cannot_be_scored_are_named_after_the_others_were_written(folder):
    shifted = REFERENCE.copy()
    shifted[0, 0, 0] = 4
    write(folder / "predictions" / "unknown.nii.gz", shifted)
    write(folder / "predictions" / "shape.nii.gz", REFERENCE[:5])
    write(folder / "predictions" / "fraction.nii.gz", REFERENCE + np.float32(0.5))
    (folder / "predictions" / "damaged.nii.gz").write_bytes(b"no nifti")
    for name in ("unknown", "shape", "fraction", "damaged", "no_prediction"):
        write(folder / "labels" / f"{name}.nii.gz", REFERENCE)
    write(folder / "predictions" / "no_label.nii.gz", REFERENCE)
    names = ["unknown", "a", "shape", "fraction", "damaged", "no_prediction", "no_label", "b"]

    scores = score(folder, names=names)

    assert {entry["case"] for entry in scores.rows} == {"a", "b"}
    wanted = {
        "unknown": r"the prediction cannot be scored: .*unknown.nii.gz: the label map holds .* not in label_values: 4;",
        "shape": r"must have one shape, got \(5, 9, 5\) in .*shape.nii.gz and \(12, 9, 5\) in .*labels.*\.$",
        "fraction": r"the prediction cannot be scored: .*fraction.nii.gz must hold whole numbers",
        "damaged": r"the prediction cannot be scored: .*damaged.nii.gz cannot be read: ",
        "no_prediction": r"the prediction is missing: .*predictions.no_prediction.nii.gz does not exist\.$",
        "no_label": r"the reference is missing: .*labels.no_label.nii.gz does not exist\.$",
    }
    assert [error["case"] for error in scores.errors] == list(wanted)
    for error in scores.errors:
        with pytest.raises(ValueError, match=wanted[error["case"]]):
            raise ValueError(error["error"])
    content = json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))
    assert content["cases"] == {"given": 8, "scored": 2} and content["errors"] == scores.errors
    assert {entry["case"] for entry in table(folder / "out" / "scores.csv")} == {"a", "b"}
    with pytest.raises(
        ValueError, match="6 cases could not be scored, the others were: unknown: .*; no_label: .*exist.$"
    ):
        require_all_scored(scores)


def test_folder_in_which_nothing_can_be_scored_still_gives_tables_and_an_error(folder):
    scores = score(folder, output_ext=".mha")
    assert scores.rows == [] and len(scores.errors) == 2
    assert len(table(folder / "out" / "summary.csv")) == len(NAMES) + 1
    with pytest.raises(ValueError, match="2 cases could not be scored"):
        require_all_scored(scores)


def test_no_cases_and_no_predictions_are_named(folder):
    with pytest.raises(ValueError, match="no cases to score"):
        score(folder, cases=[])
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder; predict the cases first"):
        score(folder, predictions_dir=folder / "nowhere")


def test_table_for_the_terminal(folder):
    lines = format_table(score(folder).summary).splitlines()
    assert lines[0].split() == ["class", "cases", "Dice", "clDice", "beta0", "error", "beta1", "error"]
    assert lines[2].split() == [
        "artery",
        "2",
        *f"{(HALF + 1) / 2:.3f} +- 0.236".split() * 2,
        *"0.000 +- 0.000".split() * 2,
    ]
    assert lines[3].split() == ["vein", "1", f"{CUT:.3f}", f"{CUT:.3f}", "1.000", "0.000"]
    assert lines[5] == lines[1] == "-" * len(lines[0])
    assert lines[6].startswith(AVERAGE) and lines[7].startswith(MERGED) and lines[8] == ""
    assert len({len(line) for line in lines[:8]}) == 1
    assert "26-connected" in "".join(lines[9:])


def test_table_of_one_class_does_not_repeat_itself(folder):
    binary = score(folder, class_names=["background", "vessel"], label_values=[0, 1], other_values="background")
    shown = format_table(binary.summary).splitlines()
    assert shown[2].startswith("vessel") and shown[3] == ""


def test_average_of_a_case_leaves_out_what_does_not_exist():
    rows = [
        {"case": "a", "class": "x", "dice": 0.5, "centerline_dice": 0.8, "radius_error_mm": math.nan},
        {"case": "a", "class": "y", "dice": 1.0, "centerline_dice": 0.6, "radius_error_mm": 0.25},
        {"case": "a", "class": MERGED, "dice": 0.1, "centerline_dice": 0.1, "radius_error_mm": 9.0},
        {"case": "b", "class": "x", "dice": 0.2, "centerline_dice": 0.3, "radius_error_mm": math.nan},
        {"case": "empty", "class": MERGED, "dice": math.nan},
    ]
    first, second = average_cases(rows)
    numbers = {"dice": 0.75, "centerline_dice": 0.7, "radius_error_mm": 0.25}
    assert first == pytest.approx({"case": "a", "class": AVERAGE, "classes": 2, "lowest": "y", **numbers})
    assert second["dice"] == 0.2 and math.isnan(second["radius_error_mm"])
