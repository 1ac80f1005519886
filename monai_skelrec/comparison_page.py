"""Step "scores -> report": runs side by side as one HTML file, with the tables behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from .comparisons import COMPARISON_CONVENTIONS, Comparison, compare_scores
from .files import replace
from .measures import MEASURES, Measure
from .page import Html, definitions, details, figure, join, page, table, text
from .plots import difference_plot
from .report_parts import conventions_of, count, heading, in_digits, provenance, sentence
from .scores import AVERAGE
from .summaries import as_csv, write_json

__all__ = ["compare_runs", "write_comparison"]

_PLOTS = ("dice", "centerline_dice", "betti0_error", "breaks")  # measures that are seen first


def compare_runs(
    runs: str | Sequence[str],
    output_dir: str | Path,
    names: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> tuple[Comparison, Path]:
    """Compare runs and write what came of it; arguments of :py:func:`monai_skelrec.comparisons.compare_scores`.

    Args as there, and:
        output_dir: see :py:func:`write_comparison`.

    Returns:
        The comparison, and the path of its page.
    """
    found = compare_scores(runs, names, measures, confidence, resamples, seed)
    folders = runs.split(",") if isinstance(runs, str) else [str(run) for run in runs]
    settings = f"{confidence:.0%} intervals, {resamples} resamples, seed {seed}"
    about = {**{name: folder.strip() for name, folder in zip(found.runs, folders)}, "Bootstrap": settings}
    return found, write_comparison(found, output_dir, about)


def write_comparison(comparison: Comparison, output_dir: str | Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write ``comparison.html``, ``comparison.csv`` (a row a run, class and measure) and ``comparison.json``.

    Args:
        comparison: of :py:func:`monai_skelrec.comparisons.compare_scores`.
        output_dir: gets the files.
        about: what was compared, to be printed: names and values.

    Returns:
        Path of the page.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    rows = comparison.rows
    replace(output_dir / "comparison.csv", lambda beside: beside.write_text(as_csv(rows), encoding="utf-8"))
    content = {
        "conventions": COMPARISON_CONVENTIONS,
        "runs": comparison.runs,
        "cases": comparison.common,
        "unmatched": comparison.unmatched,
        "comparison": rows,
    }
    write_json(output_dir / "comparison.json", content)

    measures = [measure for name, measure in MEASURES.items() if any(row["measure"] == name for row in rows)]
    drawn = _plots(comparison, measures) if optional_import("matplotlib")[1] else []
    plots = Html(f'<div class="figures plots">{join(drawn)}</div>') if drawn else Html("")
    how = definitions({sentence(name, ""): sentence(words) for name, words in COMPARISON_CONVENTIONS.items()})
    first, *others = comparison.runs
    sections = [
        ("failed", f"{count(len(comparison.unmatched), 'case')} left out", _left_out(comparison)),
        ("verdicts", "Verdicts", _verdicts(comparison, measures)),
        ("about", "What was compared", definitions({**(about or {}), **provenance()})),
        ("averages", "Class average", join(_table(comparison, run, AVERAGE, measures) for run in others)),
        ("plots", "Plots", plots),
        ("classes", "Class by class", _classes(comparison, measures)),
        ("cases", "Case by case", _cases(comparison, measures)),
        ("conventions", "How it is measured", join([how, conventions_of(measures)])),
    ]
    lead = f"{', '.join(others)} against {first}: {count(len(comparison.common), 'case')} that all have scored."
    foot = "The numbers behind this page: comparison.csv and comparison.json beside it."
    path = output_dir / "comparison.html"
    made = page("Comparison of runs", lead, sections, foot)
    replace(path, lambda beside: beside.write_text(made, encoding="utf-8"))
    return path


def _left_out(comparison: Comparison) -> Html:
    if not comparison.unmatched:
        return Html("")
    rows = [(each["case"], each["reason"]) for each in comparison.unmatched]
    note = Html("<p>They are in no number of this page.</p>")
    return join([note, table("Cases that not all runs have scored", ("Case", "Reason"), rows, words=(1,))])


def _verdicts(comparison: Comparison, measures: Sequence[Measure]) -> Html:
    rows = [row for row in comparison.rows if row["class"] == AVERAGE]
    cells = [(MEASURES[row["measure"]].heading, row["verdict"]) for row in rows]
    parts = [table("Class average of each measure, in one sentence", ("Measure", "Verdict"), cells, words=(1,))]
    if len(comparison.common) < 10:
        few = f"{count(len(comparison.common), 'case')}: intervals from so few cases are rough."
        parts.insert(0, Html(f"<p>{text(few)}</p>"))
    return join(parts)


def _table(comparison: Comparison, run: str, group: str, measures: Sequence[Measure]) -> Html:
    rows = []
    for row in comparison.rows:
        if row["run"] == run and row["class"] == group:
            measure = MEASURES[row["measure"]]
            interval = f"{in_digits(row['low'], measure, True)} to {in_digits(row['high'], measure, True)}"
            rows.append(
                [
                    heading(measure),
                    row["n"],
                    in_digits(row["baseline_mean"], measure),
                    in_digits(row["run_mean"], measure),
                    in_digits(row["difference"], measure, True),
                    interval if math.isfinite(row["low"]) else "n/a",
                    _p(row["p"]),
                    _p(row["p_holm"]),
                ]
            )
    headings = ["Measure", "Cases", comparison.runs[0], run, "Difference", "Interval", "p", "p, Holm"]
    return table(f"{group}: {run} minus {comparison.runs[0]}", headings, rows)


def _classes(comparison: Comparison, measures: Sequence[Measure]) -> Html:
    groups = [group for group in dict.fromkeys(row["class"] for row in comparison.rows) if group != AVERAGE]
    return join(
        details(group, join(_table(comparison, run, group, measures) for run in comparison.runs[1:]))
        for group in groups
    )


def _cases(comparison: Comparison, measures: Sequence[Measure]) -> Html:
    tables = []
    for run in comparison.runs[1:]:
        rows = []
        for place, case in enumerate(comparison.common):
            cells: list[object] = [case]
            for measure in measures:
                value = comparison.differences[run, AVERAGE, measure.name][place]
                cells.append((in_digits(value, measure, True), "" if math.isnan(value) else repr(value)))
            rows.append(cells)
        headings = ["Case", *map(heading, measures)]
        caption = f"Class average of each case: {run} minus {comparison.runs[0]}"
        tables.append(table(caption, headings, rows, sortable=True))
    return join(tables)


def _plots(comparison: Comparison, measures: Sequence[Measure]) -> list[Html]:
    shown = [measure for measure in measures if measure.name in _PLOTS] or list(measures)
    figures = []
    for run in comparison.runs[1:]:
        for measure in shown:
            rows = []
            for row in comparison.rows:
                if row["run"] == run and row["measure"] == measure.name and row["n"]:
                    found = comparison.differences[run, row["class"], measure.name]
                    points = [value for value in found if math.isfinite(value)]
                    rows.append((row["class"], points, row["difference"], row["low"], row["high"]))
            svg, words = difference_plot(rows, measure, f"{measure.heading}: {run} minus {comparison.runs[0]}")
            if svg:
                figures.append(figure(f"{measure.heading}: a circle a case, mean and interval", words, svg))
    return figures


def _p(value: float) -> str:
    return "n/a" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
