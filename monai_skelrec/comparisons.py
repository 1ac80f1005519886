"""Step "scores -> report": several runs side by side, case by case, with intervals and tests of their differences."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from .measures import MEASURES, Measure
from .scores import AVERAGE, MERGED
from .summaries import average_cases

__all__ = [
    "COMPARISON_CONVENTIONS",
    "Comparison",
    "compare_scores",
    "format_verdicts",
    "holm",
    "paired_interval",
    "paired_p",
    "read_run",
]

Row = dict[str, Any]

COMPARISON_CONVENTIONS = {
    "difference": "the later run minus the first one, case by case; a case counts that both have scored",
    "interval": (
        "bootstrap of the mean difference over cases, bias-corrected and accelerated (percentile where that does not "
        "exist); none below 2 cases, and rough below 10"
    ),
    "p": (
        "two-sided Wilcoxon signed-rank test of the paired differences, cases without a difference left out; 1 where "
        "there is no difference at all"
    ),
    "Holm": (
        "p corrected for the number of tests; one family are the class averages of all measures and runs, another one "
        "their classes and merged foregrounds"
    ),
    "better": "corrected p below 0.05 and an interval that leaves out 0; everything else shows no difference",
    "class average": "as each run has it: a class that one run invents counts in its average only",
}

_LEAST = 6  # cases with a difference below which no two-sided signed-rank test reaches 0.05: 2 / 2**5 = 0.0625
_LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """What runs differ in.

    Attributes:
        runs: names, the first being what the others are compared with.
        common: cases that all runs have scored.
        unmatched: one a case that some run has not scored: ``case`` and ``reason``.
        rows: one a later run, class and measure: ``run``, ``baseline``, ``class``, ``measure``, ``n``,
            ``baseline_mean``, ``run_mean``, ``difference``, ``low``, ``high``, ``p``, ``p_holm`` and ``verdict``.
        differences: for each run, class and measure the differences of the cases, in the order of ``common``.
    """

    runs: list[str]
    common: list[str]
    unmatched: list[dict[str, str]]
    rows: list[Row]
    differences: dict[tuple[str, str, str], list[float]]


def compare_scores(
    runs: str | Sequence[str | Path],
    names: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compare the scores of runs case by case: every later run with the first one.

    Args:
        runs: folders that hold a ``scores.csv``, at least two, as a list or separated by commas.
        names: of the runs; None for those of the folders.
        measures: names of :py:data:`monai_skelrec.measures.MEASURES`; None for all that every run has.
        confidence: of the intervals, between 0 and 1.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Rows with means, differences, intervals, p and a sentence; see :py:data:`COMPARISON_CONVENTIONS`.

    Raises:
        FileNotFoundError: when a folder holds no ``scores.csv``.
        ValueError: when there are less than two runs, no case or measure is common to them, a name is given twice, a
            table is damaged, or two runs measured the same differently.
    """
    given = runs.split(",") if isinstance(runs, str) else [str(run) for run in runs]
    folders = [Path(run.strip()) for run in given if run.strip()]
    if len(folders) < 2:
        raise ValueError(f"comparing takes two runs or more, got {len(folders)}; give folders as --runs a,b.")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence must lie between 0 and 1 and resamples be 1 or more, got {confidence} and {resamples}."
        )
    named = list(names) if names is not None else _names(folders)
    if len(named) != len(folders) or len(set(named)) != len(named):
        raise ValueError(f"names must name each of the {len(folders)} runs, each differently, got {named}.")
    tables = {name: read_run(folder) for name, folder in zip(named, folders, strict=True)}
    chosen = _common_measures(tables, measures)
    cases = {name: list(dict.fromkeys(row["case"] for row in table.rows)) for name, table in tables.items()}
    everywhere = set.intersection(*map(set, cases.values()))
    common = [case for case in cases[named[0]] if case in everywhere]
    if not common:
        raise ValueError(f"no case was scored in all of {', '.join(named)}; compare runs on the same cases.")
    classes = list(dict.fromkeys(row["class"] for t in tables.values() for row in t.rows if row["class"] != MERGED))
    # with one class, it and the merged foreground say the same again
    groups = [AVERAGE, *classes, MERGED] if len(classes) > 1 else [AVERAGE]
    values = {
        name: {(row["case"], row["class"]): row for row in [*table.rows, *average_cases(table.rows)]}
        for name, table in tables.items()
    }
    rows, differences = [], {}
    for name in named[1:]:
        for group in groups:
            for measure in chosen:
                pairs = [
                    [values[run].get((case, group), {}).get(measure.name, math.nan) for run in (named[0], name)]
                    for case in common
                ]
                # sums of the same numbers in another order are no difference
                both = np.round(np.array(pairs)[:, 1] - np.array(pairs)[:, 0], 12)
                differences[name, group, measure.name] = both.tolist()
                paired = np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2)
                delta = both[np.isfinite(both)]
                low, high = paired_interval(delta, confidence, resamples, seed)
                means = paired.mean(axis=0).tolist() if len(delta) else [math.nan, math.nan]
                rows.append(
                    {
                        "run": name,
                        "baseline": named[0],
                        "class": group,
                        "measure": measure.name,
                        "n": len(delta),
                        "changed": int(np.count_nonzero(delta)),
                        "baseline_mean": means[0],
                        "run_mean": means[1],
                        "difference": float(delta.mean()) if len(delta) else math.nan,
                        "low": low,
                        "high": high,
                        "p": paired_p(delta),
                    }
                )
    _correct(rows)
    return Comparison(named, common, _unmatched(tables, cases, common), rows, differences)


@dataclass(frozen=True)
class _Table:
    rows: list[Row]
    errors: dict[str, str]
    conventions: dict[str, str]


def read_run(folder: str | Path) -> _Table:
    """Scores of one run: its ``scores.csv``, and what ``summary.json`` beside it says about failures and measures.

    Raises:
        FileNotFoundError: when there is no ``scores.csv``.
        ValueError: when a table is damaged.
    """
    path = Path(folder) / "scores.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no scores.csv; give the output_dir of an evaluation or scoring."
        )
    rows: list[Row] = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"case", "class"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} must have the columns case and class, got {', '.join(reader.fieldnames or ())}.")
        for row in reader:
            try:
                numbers = {name: float(row[name]) for name in MEASURES if row.get(name)}
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}.") from error
            rows.append({"case": row["case"], "class": row["class"], **numbers})
    keys = [(row["case"], row["class"]) for row in rows]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{path} holds class {twice[1]!r} of case {twice[0]!r} twice.")
    beside = Path(folder) / "summary.json"
    content: Mapping[str, Any] = {}
    if beside.is_file():
        try:
            content = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{beside} cannot be read: {error}; score the run again.") from error
    errors = {error["case"]: error["error"] for error in content.get("errors", [])}
    return _Table(rows, errors, {name: each["convention"] for name, each in content.get("measures", {}).items()})


def paired_interval(
    differences: np.ndarray, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the mean of paired differences: BCa, or percentile where BCa does not exist.

    Returns:
        Lower and upper end; NaN each below two cases.
    """
    if len(differences) < 2:
        return math.nan, math.nan
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    for method in ("BCa", "percentile"):
        found = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=resamples,
            confidence_level=confidence,
            method=method,
            # bounds the memory: resamples x cases numbers at a time otherwise
            batch=1000,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        if np.isfinite(found).all():
            break
    return float(found.low), float(found.high)


def paired_p(differences: np.ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; 1 where all differences are 0, NaN where there are none."""
    if not len(differences):
        return math.nan
    changed = differences[differences != 0]
    return float(stats.wilcoxon(changed).pvalue) if len(changed) else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for their number by Holm's step-down procedure; NaN are no tests and stay.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    tests = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    corrected, highest = list(p), 0.0
    for rank, (value, place) in enumerate(tests):
        highest = max(highest, min(1.0, value * (len(tests) - rank)))
        corrected[place] = highest
    return corrected


def format_verdicts(comparison: Comparison) -> str:
    """A line a measure for the terminal, on the class average, and which cases were left out."""
    rows = [row for row in comparison.rows if row["class"] == AVERAGE]
    width = max(len(MEASURES[row["measure"]].heading) for row in rows)
    lines = [f"{MEASURES[row['measure']].heading.ljust(width)}  {row['verdict']}" for row in rows]
    return "\n".join([*lines, *(f"left out: {each['case']}: {each['reason']}" for each in comparison.unmatched)])


def _correct(rows: list[Row]) -> None:
    """Add Holm's p and the sentence to rows, family by family."""
    for average in (True, False):
        family = [row for row in rows if (row["class"] == AVERAGE) == average]
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
            row["verdict"] = _verdict(row, MEASURES[row["measure"]])


def _verdict(row: Row, measure: Measure) -> str:
    who = f"{row['run']} minus {row['baseline']}"
    if row["n"] == 0:
        return f"{who}: no case has both values."
    digits, unit = (2, " mm" if measure.unit == "mm" else "") if measure.unit else (3, "")
    text = f"{who}: {row['difference']:+.{digits}f}{unit}"
    if not math.isnan(row["low"]):
        text += f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    text += f", n = {row['n']}, p {_p(row['p'])} (Holm {_p(row['p_holm']).removeprefix('= ')}): "
    clear = row["p_holm"] < _LEVEL and not row["low"] <= 0 <= row["high"]
    if clear:
        better = (row["difference"] > 0) == measure.higher_is_better
        return f"{text}{row['run'] if better else row['baseline']} is better."
    if row["changed"] == 0:
        return f"{text}no difference in any case."
    if row["changed"] < _LEAST:
        cases = f"{row['changed']} case{'s' if row['changed'] > 1 else ''}"
        return f"{text}too few cases to tell; {cases} with a difference cannot reach p < {_LEVEL}."
    return f"{text}no difference shown."


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"


def _names(folders: Sequence[Path]) -> list[str]:
    """Last parts of the paths, as many as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"each run must be another folder, got {', '.join(map(str, folders))}.")


def _common_measures(tables: Mapping[str, _Table], wanted: Sequence[str] | None) -> list[Measure]:
    unknown = [name for name in wanted or () if name not in MEASURES]
    if unknown:
        raise ValueError(f"measures must be of {', '.join(MEASURES)}, got {', '.join(unknown)}.")
    had = {name: {key for row in table.rows for key in row} for name, table in tables.items()}
    common = [name for name in wanted or MEASURES if all(name in names for names in had.values())]
    if not common or len(common) < len(wanted or ()):
        lacking = ", ".join(name for name in wanted or () if name not in common) or "a measure in common"
        raise ValueError(f"not all of {', '.join(tables)} have {lacking}; score them again with the same measures.")
    for name in common:
        said = {table.conventions[name] for table in tables.values() if name in table.conventions}
        if len(said) > 1:
            raise ValueError(
                f"the runs do not measure {name} in one way ({'; '.join(sorted(said))}); score them again."
            )
    return [MEASURES[name] for name in common]


def _unmatched(
    tables: Mapping[str, _Table], cases: Mapping[str, Sequence[str]], common: Sequence[str]
) -> list[dict[str, str]]:
    scored = [case for of_run in cases.values() for case in of_run]
    failed = [case for table in tables.values() for case in table.errors]
    found = []
    for case in dict.fromkeys([*scored, *failed]):
        if case not in common:
            reasons = [
                f"{run} has not scored it" + (f" ({table.errors[case].rstrip('.')})" if case in table.errors else "")
                for run, table in tables.items()
                if case not in cases[run]
            ]
            found.append({"case": case, "reason": "; ".join(reasons) + "."})
    return found
