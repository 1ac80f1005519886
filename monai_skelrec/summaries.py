"""Step "scores -> tables": rows of cases -> mean and spread over cases, as CSV, JSON and a table for the terminal."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .case_scores import MERGED
from .files import replace
from .measures import MEASURES

__all__ = [
    "AVERAGE",
    "CONVENTIONS",
    "as_csv",
    "as_written",
    "average_cases",
    "format_table",
    "summarise",
    "write_json",
    "write_tables",
]

Row = dict[str, Any]

AVERAGE = "class average"

CONVENTIONS = {
    "scores": "whole label maps in stored orientation, unweighted over cases; +- is the sample standard deviation",
    "classes": f"'{AVERAGE}' is each case's mean over its classes, then over cases; '{MERGED}' is all classes as one",
    "absent classes": (
        "in neither reference nor prediction: left out; in one of them only: Dice 0, clDice 0, Betti error the other's "
        "number"
    ),
    "clDice": "scikit-image skeletons; a component that thinning deletes entirely keeps a centreline",
    "Betti errors": (
        "|prediction - reference| of components (0), loops (1) and cavities (2); foreground 26-connected and "
        "background 6-connected in 3D, 8 and 4 in 2D; outside the image is background"
    ),
}

# what fits a terminal; the tables on disk hold all
_SHOWN = ("dice", "centerline_dice", "betti0_error", "betti1_error")


def summarise(rows: Sequence[Row], class_names: Sequence[str]) -> list[Row]:
    """Mean and sample standard deviation over cases, per class, then of the class average and the merged foreground.

    Args:
        rows: one a case and class: ``case``, ``class`` and measures; NaN and missing measures are left out.
        class_names: background first.

    Returns:
        Rows with ``class``, ``cases`` (how many have the class), and ``<measure>_mean`` and ``<measure>_std``.
    """
    columns = [name for name in MEASURES if any(name in row for row in rows)] or list(_SHOWN)
    averages = average_cases(rows)
    summary = []
    for name in (*class_names[1:], AVERAGE, MERGED):
        of_class = [row for row in (*rows, *averages) if row["class"] == name]
        numbers = {column: _numbers(of_class, column) for column in columns}
        # a case without foreground has a merged row of NaN only
        there = [row for row in of_class if any(row.get(column, math.nan) == row.get(column) for column in columns)]
        entry: Row = {"class": name, "cases": len(there)}
        for column, values in numbers.items():
            entry[f"{column}_mean"] = _mean(values)
            entry[f"{column}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        summary.append(entry)
    return summary


def average_cases(rows: Sequence[Row]) -> list[Row]:
    """Mean over the classes of each case, which every class average is made of.

    Args:
        rows: as :py:func:`summarise`.

    Returns:
        For each case ``case``, ``class`` (:py:data:`AVERAGE`), ``classes`` (their number), ``lowest`` (the class with
        the lowest centreline Dice) and the mean of each measure, NaN where no class has a value. Cases without
        foreground are left out.
    """
    columns = [name for name in MEASURES if any(name in row for row in rows)]
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        if row["class"] != MERGED:
            by_case.setdefault(row["case"], []).append(row)
    return [
        {
            "case": case,
            "class": AVERAGE,
            "classes": len(of_case),
            "lowest": min(of_case, key=lambda row: row.get("centerline_dice", math.inf))["class"],
            **{column: _mean(_numbers(of_case, column)) for column in columns},
        }
        for case, of_case in by_case.items()
    ]


def format_table(summary: Sequence[Row], measures: Sequence[str] = _SHOWN) -> str:
    """Draw a summary as a table for the terminal, with its conventions below.

    Args:
        summary: of :py:func:`summarise`.
        measures: the columns; those that the summary does not hold are left out.
    """
    # with one class, its average and the merged foreground say the same again
    shown = [row for row in summary if len(summary) > 3 or row["class"] not in (AVERAGE, MERGED)]
    there = [name for name in measures if any(f"{name}_mean" in row for row in summary)]
    units = {name: f" ({MEASURES[name].unit})" if MEASURES[name].unit == "mm" else "" for name in there}
    table = [["class", "cases", *(MEASURES[name].heading + units[name] for name in there)]]
    for row in shown:
        cells = (_mean_and_spread(row[f"{name}_mean"], row[f"{name}_std"]) for name in there)
        table.append([row["class"], str(row["cases"]), *cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table]
    rule = "-" * len(lines[0])
    lines.insert(1, rule)
    if len(shown) > 1:
        lines.insert(-2, rule)
    lines.append("")
    extra = {MEASURES[name].heading: MEASURES[name].convention for name in there if name not in _SHOWN}
    for what, how in {**CONVENTIONS, **extra}.items():
        lines.extend(textwrap.wrap(f"{what}: {how}.", max(len(rule), 80), subsequent_indent="  "))
    return "\n".join(lines)


def write_tables(
    rows: Sequence[Row],
    summary: Sequence[Row],
    errors: Sequence[Mapping[str, str]],
    output_dir: Path,
    n_cases: int,
    unmatched: Sequence[str] = (),
) -> None:
    """Write ``scores.csv``, ``summary.csv`` and ``summary.json``, each whole or not at all.

    Args:
        rows: one a case and class.
        summary: of :py:func:`summarise`.
        errors: cases that could not be scored, with a sentence.
        output_dir: made where it is missing.
        n_cases: cases there are, scored or not.
        unmatched: sentences about files of either side without a partner that were left out on demand.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    _write(output_dir / "scores.csv", as_csv(rows, first=("case", "class")))
    _write(output_dir / "summary.csv", as_csv(summary, first=("class", "cases")))
    content = {
        "conventions": CONVENTIONS,
        "measures": {
            name: dataclasses.asdict(measure)
            for name, measure in MEASURES.items()
            if any(f"{name}_mean" in row for row in summary)
        },
        "cases": {"given": n_cases, "scored": n_cases - len(errors)},
        "errors": list(errors),
        "unmatched": list(unmatched),
        "summary": list(summary),
    }
    write_json(output_dir / "summary.json", content)


def as_written(content: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from a file; objects that a Python caller put into a configuration become text."""
    written: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return written


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; NaN, which is no JSON, becomes null."""
    _write(path, json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(rows: Sequence[Row], column: str) -> list[float]:
    return [row[column] for row in rows if column in row and not math.isnan(row[column])]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def as_csv(rows: Sequence[Row], first: Sequence[str] = ()) -> str:
    """Rows as CSV, a column for each name that occurs, those of ``first`` before the others."""
    columns = dict.fromkeys([*first, *(key for row in rows for key in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    replace(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def _mean_and_spread(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(spread) else f"{mean:.3f} +- {spread:.3f}"
