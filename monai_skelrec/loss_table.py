"""Step "scores -> table": losses side by side, means and spreads over seeds, tests case by case, links to pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from .comparison_page import compare_runs
from .comparisons import format_verdicts, read_run
from .files import replace
from .measures import MEASURES
from .summaries import as_csv, average_cases

__all__ = ["COST", "LossRun", "complete_runs", "write_loss_table"]

Row = dict[str, Any]

COST = "cost.json"
# recall below which a network is said to have found nothing
_NOTHING = 0.1


class LossRun(NamedTuple):
    """A scored run of a comparison; ``folder`` holds a folder of scores for each part of the report."""

    loss: str
    seed: int
    fold: str
    folder: Path


def complete_runs(runs: Sequence[LossRun]) -> list[LossRun]:
    """The runs whose seed and fold every loss among them has finished: of those the table is made."""
    done: dict[str, set[tuple[int, str]]] = {}
    for run in runs:
        done.setdefault(run.loss, set()).add((run.seed, run.fold))
    common = set.intersection(*done.values()) if done else set()
    return [run for run in runs if (run.seed, run.fold) in common]


def write_loss_table(
    output_dir: Path,
    runs: Sequence[LossRun],
    reports: Sequence[str],
    measures: Sequence[str],
    baselines: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    planned: int | None = None,
    pictures: Sequence[Path] = (),
) -> Path:
    """Write ``table.md`` and ``table.csv``, and for each baseline the page of a comparison.

    A number is the mean over cases of each case's class average, first within a seed (the cases of all folds and
    parts of the report together), then over seeds, with the sample standard deviation over seeds. Only pairs of seed
    and fold count that every loss of the table has finished, and of these only cases that could be scored for every
    loss.

    Tests are paired by case: each case's score, averaged over seeds, against that of the baseline, as
    :py:func:`monai_skelrec.comparisons.compare_scores` does it. They say whether the losses differ on these cases, not
    whether they would with other seeds; the spread over seeds stands beside.

    Args:
        output_dir: gets the files.
        runs: that are scored.
        reports: folders of scores within each run's.
        measures: columns.
        baselines: losses that the others are tested against; ``against_<baseline>/comparison.html``.
        about: the budget, for the table's foot.
        planned: how many runs there will be.
        pictures: within ``output_dir``, that ``table.md`` shows; the name of each is that of its case.

    Returns:
        Path of ``table.md``.
    """
    losses = list(dict.fromkeys(run.loss for run in runs))
    counted = complete_runs(runs)
    scores = _read_scores(counted, reports)
    seeds = sorted({run.seed for run in counted})
    rows: list[Row] = []
    for loss in losses if counted else []:
        row: Row = {"loss": loss, "seeds": len(seeds), "runs": len(counted) // len(losses)}
        for name in measures:
            of_seed = [_mean(_averages(scores, loss, seed, name)) for seed in seeds]
            row[f"{name}_mean"] = _mean(of_seed)
            row[f"{name}_std"] = float(np.std(of_seed, ddof=1)) if len(of_seed) > 1 else math.nan
        cost = output_dir / loss / COST
        if cost.is_file():
            content = json.loads(cost.read_text(encoding="utf-8"))
            row |= {"step_seconds": content["seconds"], "memory_mib": content["memory_mib"]}
        rows.append(row)
    replace(output_dir / "table.csv", lambda beside: beside.write_text(as_csv(rows, ["loss"]), encoding="utf-8"))

    pooled = {loss: _pool(output_dir / loss / "pooled", scores, loss) for loss in losses} if baselines else {}
    verdicts = []
    for baseline in [loss for loss in baselines if loss in pooled]:
        others = [loss for loss in losses if loss != baseline]
        if others and counted:
            chosen = [name for name in measures if f"{name}_mean" in rows[0]]
            folders = [str(pooled[loss]) for loss in (baseline, *others)]
            page = output_dir / f"against_{baseline}"
            comparison, _ = compare_runs(folders, page, [baseline, *others], chosen)
            verdicts.append(f"## Against {baseline}\n\n```text\n{format_verdicts(comparison)}\n```\n")
    n_cases = len({row["case"] for rows in scores.values() for row in rows})
    sections = [*verdicts, *_pictures([picture.relative_to(output_dir) for picture in pictures])]
    text = _markdown(
        rows, measures, sections, counted, {**(about or {}), "seeds": seeds, "cases": n_cases}, len(runs), planned
    )
    path = output_dir / "table.md"
    replace(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    return path


def _read_scores(runs: Sequence[LossRun], reports: Sequence[str]) -> dict[LossRun, list[Row]]:
    """Rows of each run, without cases that failed for some loss of the same seed and fold: all means agree on cases."""
    scores: dict[LossRun, list[Row]] = {}
    failed: dict[tuple[int, str], set[str]] = {}
    for run in runs:
        tables = [read_run(run.folder / report) for report in reports]
        rows = [row for table in tables for row in table.rows]
        keys = [(row["case"], row["class"]) for row in rows]
        if len(set(keys)) < len(keys):
            twice = next(case for case, group in keys if keys.count((case, group)) > 1)
            raise ValueError(f"case {twice!r} stands in two parts of the report of {run.folder}; give each case once.")
        scores[run] = rows
        failed.setdefault((run.seed, run.fold), set()).update(case for table in tables for case in table.errors)
    return {run: [row for row in rows if row["case"] not in failed[run.seed, run.fold]] for run, rows in scores.items()}


def _averages(scores: Mapping[LossRun, list[Row]], loss: str, seed: int, measure: str) -> list[float]:
    of_seed = [
        row for run, rows in scores.items() if (run.loss, run.seed) == (loss, seed) for row in average_cases(rows)
    ]
    return [row[measure] for row in of_seed if measure in row]


def _pool(folder: Path, scores: Mapping[LossRun, list[Row]], loss: str) -> Path:
    """Each case's scores averaged over seeds, in the form of an evaluation's."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run, rows in scores.items():
        for row in rows if run.loss == loss else []:
            of_row = values.setdefault((row["case"], row["class"]), {})
            for name in MEASURES:
                if name in row:
                    of_row.setdefault(name, []).append(row[name])
    pooled = [
        {"case": case, "class": group, **{name: _mean(found) for name, found in of_row.items()}}
        for (case, group), of_row in values.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = as_csv(pooled, ["case", "class"])
    replace(folder / "scores.csv", lambda beside: beside.write_text(text, encoding="utf-8"))
    return folder


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return float(np.mean(finite)) if finite else math.nan


def _markdown(
    rows: Sequence[Row],
    measures: Sequence[str],
    sections: Sequence[str],
    counted: Sequence[LossRun],
    about: Mapping[str, Any],
    done: int,
    planned: int | None,
) -> str:
    costs = any("step_seconds" in row for row in rows)
    headings = ["loss", *(MEASURES[name].heading for name in measures), *(["s / step", "MiB"] if costs else [])]
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    for row in rows:
        cells = [row["loss"], *(_cell(row[f"{name}_mean"], row[f"{name}_std"], name) for name in measures)]
        if costs:
            cells += [f"{row['step_seconds']:.3f}", f"{row['memory_mib']:.0f}"] if "step_seconds" in row else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    foot = [
        "Mean over cases and seeds +- standard deviation over seeds. "
        + ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)
        + f"; {len(counted)} of {done} scored runs stand in the table, for every loss the same seeds and folds"
        + (f"; {planned} are planned." if planned is not None else ".")
    ]
    foot += _blind(rows, measures)
    reports = [f"- {run.loss}, seed {run.seed}, fold {run.fold}: `{run.folder}`" for run in counted]
    parts = ["# Losses side by side", "\n".join(lines), *foot, *sections, "## Runs", "\n".join(reports)]
    return "\n\n".join(parts) + "\n"


def _blind(rows: Sequence[Row], measures: Sequence[str]) -> list[str]:
    """A warning for each loss whose networks find next to nothing, which errors of counts do not show."""
    if "recall" not in measures:
        return []
    return [
        f"**{row['loss']} finds next to nothing** (recall {row['recall_mean']:.2f}): errors that count components, "
        "loops or false voxels are low for empty label maps, and say nothing for it."
        for row in rows
        if row["recall_mean"] < _NOTHING
    ]


def _pictures(paths: Sequence[Path]) -> list[str]:
    """The section that shows pictures, by links relative to the table."""
    if not paths:
        return []
    links = [
        f"![Case {path.stem}: image, reference, and each loss with its faults]({quote(path.as_posix())})"
        for path in paths
    ]
    note = "Chosen for their difference, they show how the losses err; which one errs less, the table says."
    return ["## Cases on which the losses differ most", note, *links]


def _cell(mean: float, std: float, name: str) -> str:
    digits = 2 if MEASURES[name].unit else 4
    if math.isnan(mean):
        return "n/a"
    return f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" +- {std:.{digits}f}")
