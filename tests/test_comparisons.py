"""Runs side by side: differences by hand, intervals and tests against what is known of them, and honest sentences."""

from __future__ import annotations

import csv
import json
import math

import monai.bundle
import numpy as np
import pytest
from bundle_data import CONFIGS
from scipy import stats

from monai_skelrec.comparison_page import compare_runs, write_comparison
from monai_skelrec.comparisons import compare_scores, format_verdicts, holm, paired_interval, paired_p
from monai_skelrec.scores import AVERAGE, MERGED
from monai_skelrec.workflows import root_cause


def write_run(folder, values, errors=(), conventions=None):
    """A run of class "vessel", or of the classes named: ``values`` by case, each a Dice or a dictionary of rows."""
    folder.mkdir(parents=True)
    rows = []
    for case, found in values.items():
        by_class = found if isinstance(found, dict) else {"vessel": found}
        for name, dice in by_class.items():
            row = {"dice": dice} if not isinstance(dice, dict) else dice
            rows.append({"case": case, "class": name, **row})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(folder / "scores.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    measures = {name: {"convention": words} for name, words in (conventions or {}).items()}
    summary = {"errors": [{"case": case, "error": why} for case, why in errors], "measures": measures}
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def two(root, first, second, **options):
    runs = [write_run(root / name, values) for name, values in (("A", first), ("B", second))]
    return compare_scores(runs, **options)


def row_of(comparison, group=AVERAGE, measure="dice", run="B"):
    return next(row for row in comparison.rows if (row["run"], row["class"], row["measure"]) == (run, group, measure))


def many(values):
    return {f"case {number}": value for number, value in enumerate(values)}


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_differences_are_paired_by_case(tmp_path):
    """0.6 - 0.5, 0.8 - 0.6 and 0.7 - 0.7 in whatever order the tables have them."""
    found = two(tmp_path, {"a": 0.5, "b": 0.6, "c": 0.7}, {"c": 0.7, "a": 0.6, "b": 0.8})
    row = row_of(found)
    assert found.common == ["a", "b", "c"] and row["n"] == 3 and row["changed"] == 2
    assert [row["baseline_mean"], row["run_mean"], row["difference"]] == pytest.approx([0.6, 0.7, 0.1])
    assert found.differences["B", AVERAGE, "dice"] == pytest.approx([0.1, 0.2, 0.0])


def test_average_is_over_classes_first_and_leaves_the_merged_foreground_out(tmp_path):
    first = {"a": {"x": 0.2, "y": 0.4, MERGED: 0.9}, "b": {"x": 0.5, MERGED: 0.9}}
    second = {"a": {"x": 0.4, "y": 0.6, MERGED: 0.1}, "b": {"x": 0.5, MERGED: 0.1}}
    found = two(tmp_path, first, second)
    assert row_of(found)["difference"] == pytest.approx((0.2 + 0) / 2)
    assert row_of(found, "x")["n"] == 2 and row_of(found, "y")["n"] == 1
    assert row_of(found, MERGED)["difference"] == pytest.approx(-0.8)


def test_one_class_is_said_once(tmp_path):
    found = two(tmp_path, {"a": {"x": 0.2, MERGED: 0.2}}, {"a": {"x": 0.4, MERGED: 0.4}})
    assert [row["class"] for row in found.rows] == [AVERAGE]


def test_class_that_one_run_invents_is_paired_nowhere(tmp_path):
    found = two(tmp_path, {"a": {"x": 0.5}, "b": {"x": 0.5}}, {"a": {"x": 0.5, "y": 0.0}, "b": {"x": 0.5}})
    assert row_of(found, "y")["n"] == 0 and "no case has both values" in row_of(found, "y")["verdict"]
    assert row_of(found)["difference"] == pytest.approx(-0.125)


def test_six_gains_reach_the_smallest_p_there_is():
    """All 2**6 signs are equally likely, two of them are as extreme."""
    assert paired_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])) == pytest.approx(2 / 2**6)
    assert paired_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0, 0])) == pytest.approx(2 / 2**6)
    assert paired_p(np.array([0.1, -0.1, 0.2, -0.2])) == pytest.approx(1)
    assert paired_p(np.zeros(4)) == 1 and math.isnan(paired_p(np.array([])))


def test_interval_of_many_differences_is_that_of_students_t():
    differences = np.random.default_rng(3).normal(0.2, 1, 400)
    expected = stats.t.interval(0.95, 399, differences.mean(), stats.sem(differences))
    assert paired_interval(differences) == pytest.approx(expected, abs=0.02)
    wider = paired_interval(differences, confidence=0.99)
    assert wider[0] < expected[0] < expected[1] < wider[1]


def test_interval_is_repeatable_and_depends_on_seed_and_resamples():
    differences = np.array([0.1, 0.3, -0.2, 0.4, 0.05, 0.11])
    assert paired_interval(differences) == paired_interval(differences)
    assert paired_interval(differences, seed=1) != paired_interval(differences)
    assert paired_interval(differences, resamples=99) != paired_interval(differences)


def test_interval_of_few_or_equal_differences():
    assert all(math.isnan(end) for end in paired_interval(np.array([0.3])))
    assert paired_interval(np.array([0.25, 0.25, 0.25])) == (0.25, 0.25)


def test_holm_by_hand():
    """Ordered 0.01, 0.02, 0.03: times 3, 2, 1; never less than the one before, and NaN is no test."""
    assert holm([0.02, math.nan, 0.01, 0.03])[0] == pytest.approx(0.04)
    assert [value for value in holm([0.02, math.nan, 0.01, 0.03]) if value == value] == pytest.approx(
        [0.04, 0.03, 0.04]
    )
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


def test_every_run_is_compared_with_the_first_and_corrected_for_all(tmp_path):
    gains = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15]
    runs = [write_run(tmp_path / "A", many([0.5] * 6))]
    runs += [
        write_run(tmp_path / name, many([0.5 + sign * gain for gain in gains])) for name, sign in (("B", 1), ("C", -1))
    ]
    found = compare_scores(",".join(runs))
    rows = [row_of(found, run=run) for run in "BC"]
    assert [row["p"] for row in rows] == pytest.approx([2 / 64] * 2)
    assert [row["p_holm"] for row in rows] == pytest.approx([4 / 64] * 2)
    assert all("no difference shown" in row["verdict"] for row in rows)  # 0.0625


# --- sentences -------------------------------------------------------------------------------------------------------


def test_verdict_names_the_better_run_whichever_way_the_measure_goes(tmp_path):
    gains = np.linspace(0.1, 0.2, 12)
    rows = [{"dice": 0.5, "betti0_error": 4.0} for _ in gains]
    others = [{"dice": 0.5 + gain, "betti0_error": 4 + 10 * gain} for gain in gains]
    found = two(tmp_path, many([{"vessel": row} for row in rows]), many([{"vessel": row} for row in others]))
    dice, betti = row_of(found)["verdict"], row_of(found, measure="betti0_error")["verdict"]
    assert dice.startswith("B minus A: +0.150 [0.1") and ", n = 12, p < 0.001 (Holm < 0.001): " in dice
    assert dice.endswith("B is better.") and betti.endswith("A is better.")


def test_few_cases_promise_nothing(tmp_path):
    verdict = row_of(two(tmp_path, many([0.5] * 5), many([0.9, 0.91, 0.92, 0.93, 0.94])))["verdict"]
    assert verdict.endswith("too few cases to tell; 5 cases with a difference cannot reach p < 0.05.")


def test_equal_runs_do_not_differ(tmp_path):
    row = row_of(two(tmp_path, many([0.5, 0.6, 0.7]), many([0.5, 0.6, 0.7])))
    assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)
    assert row["verdict"] == (
        "B minus A: +0.000 [0.000, 0.000], n = 3, p = 1.00 (Holm 1.00): no difference in any case."
    )


def test_cases_that_a_run_lacks_are_named_with_its_reason(tmp_path):
    runs = [
        write_run(tmp_path / "A", {"a": 0.5, "b": 0.5}),
        write_run(tmp_path / "B", {"a": 0.6}, errors=[("b", "the prediction is missing."), ("z", "it is damaged.")]),
    ]
    found = compare_scores(runs)
    assert found.common == ["a"]
    reasons = {each["case"]: each["reason"] for each in found.unmatched}
    assert reasons["b"] == "B has not scored it (the prediction is missing)."
    assert reasons["z"] == "A has not scored it; B has not scored it (it is damaged)."
    assert "left out: b: B has not scored it" in format_verdicts(found)


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / name / "evaluation", {"a": 0.5}) for name in ("plain", "recall")]
    assert compare_scores(runs).runs == ["plain/evaluation", "recall/evaluation"]
    assert compare_scores(runs, names=["A", "B"]).runs == ["A", "B"]


def test_measures_are_those_of_all_runs_or_as_asked(tmp_path):
    both = {"a": {"x": {"dice": 0.5, "breaks": 1}}}
    found = two(tmp_path / "1", both, {"a": {"x": {"dice": 0.5, "breaks": 1, "strange": 7}}})
    assert [row["measure"] for row in found.rows] == ["dice", "breaks"]
    found = two(tmp_path / "2", both, both, measures=["breaks"])
    assert [row["measure"] for row in found.rows] == ["breaks"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runs": "A"}, "takes two runs or more, got 1"),
        ({"runs": "A,nowhere"}, "'nowhere' holds no scores.csv"),
        ({"runs": "A,A"}, "each run must be another folder"),
        ({"runs": "A,other"}, "no case was scored in all of A, other"),
        ({"runs": "A,B", "names": ["x", "x"]}, "each differently"),
        ({"runs": "A,B", "measures": ["dise"]}, "measures must be of dice, .* got dise"),
        ({"runs": "A,B", "measures": ["breaks"]}, "not all of A, B have breaks"),
        ({"runs": "A,differs"}, "do not measure dice in one way"),
        ({"runs": "A,twice"}, "class 'vessel' of case 'a' twice"),
        ({"runs": "A,words"}, "line 2: could not convert"),
        ({"runs": "A,headless"}, "must have the columns case and class, got a, b"),
        ({"runs": "A,B", "confidence": 95}, "confidence must lie between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, monkeypatch, options, message):
    for name, case in (("A", "a"), ("B", "a"), ("other", "b"), ("twice", "a"), ("words", "a"), ("headless", "a")):
        write_run(tmp_path / name, {case: 0.5}, conventions={"dice": "overlap"})
    write_run(tmp_path / "differs", {"a": 0.5}, conventions={"dice": "something else"})
    with open(tmp_path / "twice" / "scores.csv", "a") as file:
        file.write("a,vessel,0.7\n")
    (tmp_path / "words" / "scores.csv").write_text("case,class,dice\na,vessel,good\n")
    (tmp_path / "headless" / "scores.csv").write_text("a,b\n1,2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compare_scores(**options)


# --- files and command -----------------------------------------------------------------------------------------------


def test_page_and_tables_say_the_same(tmp_path):
    found = two(tmp_path, many([0.5, 0.6, 0.55]), many([0.7, 0.65, 0.5]))
    path = write_comparison(found, tmp_path / "out", {"A": "<i>here</i>"})
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "comparison.csv",
        "comparison.html",
        "comparison.json",
    ]
    text = path.read_text(encoding="utf-8")
    assert "&lt;i&gt;here" in text and "<i>" not in text and "3 cases: intervals from so few cases are rough." in text
    with open(tmp_path / "out" / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert float(rows[0]["difference"]) == pytest.approx(found.rows[0]["difference"])
    assert content["runs"] == ["A", "B"] and content["comparison"][0]["verdict"] == rows[0]["verdict"]
    assert rows[0]["verdict"] in text.replace("&lt;", "<") and "Holm" in content["conventions"]


@pytest.mark.parametrize("as_fire_gives_it", [",".join, tuple])
def test_command_compares_what_commas_separate(tmp_path, as_fire_gives_it, capsys):
    runs = [write_run(tmp_path / name, many([0.5, value])) for name, value in (("A", 0.5), ("B", 0.7))]
    monai.bundle.run(
        run_id="comparing_scores",
        config_file=str(CONFIGS / "compare_scores.yaml"),
        runs=as_fire_gives_it(runs),
        output_dir=str(tmp_path / "out"),
        names=["plain", "recall"],
    )
    printed = capsys.readouterr().out
    assert "recall minus plain: +0.100" in printed and str(tmp_path / "out" / "comparison.html") in printed


def test_command_without_runs_says_what_to_do(tmp_path):
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps each in a RuntimeError of its own
        monai.bundle.run(
            run_id="comparing_scores",
            config_file=str(CONFIGS / "compare_scores.yaml"),
            output_dir=str(tmp_path / "out"),
        )
    assert "give folders as --runs a,b" in root_cause(error.value)


def test_settings_are_printed(tmp_path):
    runs = [write_run(tmp_path / name, many([0.5, 0.6])) for name in "AB"]
    _, path = compare_runs(runs, tmp_path / "out", confidence=0.9, resamples=99, seed=5)
    assert "90% intervals, 99 resamples, seed 5" in path.read_text(encoding="utf-8")
