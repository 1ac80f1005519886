"""Step "scores -> report": an evaluation as one HTML file that opens anywhere, with all that it takes to judge it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from .challenges import CHALLENGES
from .files import replace
from .measures import MEASURES, Measure
from .page import Html, cards, definitions, details, figure, join, page, table, text
from .panels import MARKS, Panel, count_faults, picture_case, read_case
from .plots import box_plot, scatter_plot
from .projections import COLOURS
from .report_parts import conventions_of, count, heading, in_digits, provenance, sentence
from .scores import AVERAGE, MERGED, Scores
from .summaries import average_cases

__all__ = ["write_report"]

Row = dict[str, Any]

# measures that are seen first, as cards and as plots
_CARDS = ("dice", "centerline_dice", "betti0_error", "betti1_error", "hausdorff95_mm", "breaks", "false_merges")
_PLOTS = ("dice", "centerline_dice", "betti0_error", "breaks")
_WORST_BY = "centerline_dice"


def write_report(
    scores: Scores,
    output_dir: str | Path,
    class_names: Sequence[str],
    label_values: Sequence[int],
    other_values: str = "error",
    cases: Iterable[Mapping[str, str]] = (),
    predictions_dir: str | Path | None = None,
    output_ext: str = ".nii.gz",
    about: Mapping[str, Any] | None = None,
    pictures: int = 3,
    pixels: int = 480,
    spacing: Sequence[float] | None = None,
    check_grid: bool = True,
    challenge: str | None = None,
) -> Path:
    """Write ``report.html`` beside the tables of :py:func:`monai_skelrec.scores.score_label_maps`.

    One file without references to the outside: what was evaluated, what failed, summary, plots, the worst cases in
    pictures, all cases, and how every number is measured. Without matplotlib there are tables only, and it says so.

    Args:
        scores: what was found.
        output_dir: gets ``report.html``.
        class_names: name of each class, background first.
        label_values: value on disk of each class, as ``class_names``.
        other_values: what a value not listed means: ``"error"``, ``"background"`` or ``"foreground"``.
        cases: dictionaries with ``name``, ``label`` and, where there is one, ``image`` (paths), and ``prediction``
            where it is not ``<predictions_dir>/<name><output_ext>``.
        predictions_dir: holds the predictions; None where every case names its own.
        output_ext: ending of the predictions' names.
        about: what was evaluated, to be printed: names such as task, weights and data, and their values.
        pictures: how many cases are shown, the lowest class-average centreline Dice first; 0 for none.
        pixels: longer side of each picture, which bounds the size of the file: about 40 kB a case at 480.
        spacing: edges of a voxel, for formats that do not hold them.
        check_grid: as the label maps were scored.
        challenge: whose scores ``scores.challenge`` holds, a name of :py:data:`monai_skelrec.challenges.CHALLENGES`.

    Returns:
        Path of the report.
    """
    by_name = {case["name"]: case for case in cases}
    measures = [measure for name, measure in MEASURES.items() if any(name in row for row in scores.rows)]
    averages = sorted(average_cases(scores.rows), key=lambda row: row.get(_WORST_BY, math.inf))
    drawable, plotted = [row for row in averages if row["case"] in by_name], optional_import("matplotlib")[1]
    classes = [name for name in class_names[1:] if any(row["class"] == name for row in scores.rows)]
    title = f"Evaluation: {(about or {}).get('task', 'label maps')}"
    lead = f"{count(len({row['case'] for row in scores.rows}), 'case')} scored"
    if scores.errors:
        lead += f", {count(len(scores.errors), 'case')} could not be scored"

    shown: list[Html] = []
    for row in drawable[: max(pictures, 0) if plotted else 0]:
        case = by_name[row["case"]]
        path = case.get("prediction") or Path(predictions_dir or ".") / f"{case['name']}{output_ext}"
        of_case = read_case(case.get("image"), case["label"], path, label_values, other_values, spacing, check_grid)
        panels = picture_case(of_case, case["name"], class_names, pixels)
        of_class = [one for one in scores.rows if one["case"] == row["case"]]
        shown += [
            Html(f"<h3>{text(case['name'])}</h3>"),
            Html(f"<p>{text(_in_words(row, measures))} {text(count_faults(of_case.faults))}.</p>"),
            *_pictures(panels),
            details(f"Scores of {case['name']}, class by class", _class_table(of_class, measures, case["name"])),
        ]
    if shown:
        shown.insert(0, _legend(class_names))

    sections = [
        ("failed", f"{count(len(scores.errors), 'case')} could not be scored", _failures(scores)),
        ("glance", "At a glance", _glance(scores.summary, measures)),
        ("about", "What was evaluated", definitions({**_capital(about or {}), **provenance()})),
        ("summary", "Summary", _summary(scores.summary, measures)),
        ("plots", "Plots", _plots(scores.rows, classes, measures) if plotted else _no_plots(scores)),
        ("worst", "Worst cases", join(shown)),
        ("cases", "All cases", _all_cases(averages, measures)),
        ("challenge", f"Scores of {challenge}", _challenge(scores.challenge, challenge)),
        ("conventions", "How it is measured", conventions_of(measures)),
    ]
    path = Path(output_dir) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    foot = "The numbers behind this page: scores.csv (a row a case and class), summary.csv and summary.json beside it."
    content = page(title, f"{lead}.", sections, foot)
    replace(path, lambda beside: beside.write_text(content, encoding="utf-8"))
    return path


def _failures(scores: Scores) -> Html:
    if not scores.errors:
        return Html("")
    rows = [(error["case"], sentence(error["error"])) for error in scores.errors]
    note = Html("<p>They are in no number of this page; all others were scored.</p>")
    return join([note, table("Cases without scores, and why", ("Case", "Reason"), rows, words=(1,))])


def _glance(summary: Sequence[Row], measures: Sequence[Measure]) -> Html:
    average = next((row for row in summary if row["class"] == AVERAGE), None)
    if average is None or not average["cases"]:
        return Html("")
    several = sum(row["class"] not in (AVERAGE, MERGED) for row in summary) > 1
    numbers = []
    for measure in _first(measures, _CARDS)[0]:
        mean, spread = average[f"{measure.name}_mean"], average[f"{measure.name}_std"]
        unit = " mm" if measure.unit == "mm" and not math.isnan(mean) else ""
        better = "higher is better" if measure.higher_is_better else "lower is better"
        plus = "" if math.isnan(spread) else f"± {in_digits(spread, measure)}, "
        numbers.append((measure.heading, in_digits(mean, measure) + unit, f"{plus}{better}"))
    of = "class average, " if several else ""
    note = f"Mean and standard deviation over cases, {of}{count(average['cases'], 'case')}."
    return join([Html(f'<p class="soft">{text(note)}</p>'), cards(numbers)])


def _summary(summary: Sequence[Row], measures: Sequence[Measure]) -> Html:
    # with one class, its average and the merged foreground say the same again
    shown = [row for row in summary if len(summary) > 3 or row["class"] not in (AVERAGE, MERGED)]
    rows = []
    for row in shown:
        cells: list[object] = [row["class"], row["cases"]]
        for measure in measures:
            mean, spread = row[f"{measure.name}_mean"], row[f"{measure.name}_std"]
            plus = "" if math.isnan(spread) else Html(f" <small>± {in_digits(spread, measure)}</small>")
            cells.append(join([in_digits(mean, measure), plus], ""))
        rows.append(cells)
    strong = [place for place, row in enumerate(shown) if row["class"] in (AVERAGE, MERGED)]
    headings = ["Class", "Cases", *map(heading, measures)]
    return table("Mean ± standard deviation over cases", headings, rows, strong=strong)


def _class_table(rows: Sequence[Row], measures: Sequence[Measure], name: str) -> Html:
    cells = [[row["class"], *(in_digits(row.get(m.name, math.nan), m) for m in measures)] for row in rows]
    strong = [place for place, row in enumerate(rows) if row["class"] == MERGED]
    return table(f"Scores of {name}", ["Class", *map(heading, measures)], cells, strong=strong)


def _all_cases(averages: Sequence[Row], measures: Sequence[Measure]) -> Html:
    if not averages:
        return Html("")
    rows = []
    for row in averages:
        cells: list[object] = [row["case"], row["classes"], row["lowest"]]
        for measure in measures:
            value = row.get(measure.name, math.nan)
            cells.append((in_digits(value, measure), "" if math.isnan(value) else repr(value)))
        rows.append(cells)
    headings = ["Case", "Classes", "Lowest clDice", *map(heading, measures)]
    return table("Mean over the classes of each case, lowest clDice first", headings, rows, sortable=True)


def _plots(rows: Sequence[Row], classes: Sequence[str], measures: Sequence[Measure]) -> Html:
    drawn: list[list[Html]] = []
    for some in _first(measures, _PLOTS):
        drawn.append([])
        for measure in some:
            svg, words = box_plot([row for row in rows if measure.name in row], classes, measure)
            if svg:
                drawn[-1].append(figure(f"{measure.heading} of each class, a point a case", words, svg))
    first, others = drawn
    if {"dice", "centerline_dice"} <= {measure.name for measure in measures}:
        dice, centerline_dice = MEASURES["dice"], MEASURES["centerline_dice"]
        svg, words = scatter_plot(rows, classes, dice, centerline_dice)
        if svg:
            first.append(figure("clDice against Dice, a point a case and class", words, svg))
    parts = [Html(f'<div class="figures plots">{join(first)}</div>')]
    if others:
        more = Html(f'<div class="figures plots">{join(others)}</div>')
        parts.append(details(f"Plots of {count(len(others), 'more measure')}", more))
    return join(parts) if first else Html("")


def _first(measures: Sequence[Measure], names: Sequence[str]) -> tuple[list[Measure], list[Measure]]:
    """The measures of these names, and the others; where there is none of these names, all are first."""
    first = [measure for measure in measures if measure.name in names] or list(measures)
    return first, [measure for measure in measures if measure not in first]


def _challenge(found: Mapping[str, Any], challenge: str | None) -> Html:
    """The scores of a challenge over cases, under its own names, and how it measures them."""
    if not found or challenge is None:
        return Html("")
    rows = []
    for name, value in _leaves(found):
        if isinstance(value, Mapping):
            cells = [_plain(value.get(key)) for key in ("mean", "std", "min", "max")]
            rows.append([name, *cells, value.get("count", "")])
        else:
            rows.append([name, _plain(value), "", "", "", ""])
    headings = ("Name", "Value or mean", "Standard deviation", "Minimum", "Maximum", "Cases")
    numbers = table(f"Scores over cases, as the organisers of {challenge} name them", headings, rows)
    how = definitions({name: sentence(words) for name, words in CHALLENGES[challenge].conventions.items()})
    return join([numbers, details(f"How {challenge} measures", how)])


def _leaves(found: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Names and values of nested scores; statistics of one number stay together."""
    leaves: list[tuple[str, Any]] = []
    for name, value in found.items():
        if isinstance(value, Mapping) and "mean" not in value:
            leaves += _leaves(value, f"{above}{name} ")
        else:
            leaves.append((above + name, value))
    return leaves


def _plain(value: Any) -> str:
    if value is None or value != value:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _no_plots(scores: Scores) -> Html:
    return text("Plots and pictures need matplotlib: pip install monai_skelrec[report].") if scores.rows else Html("")


def _legend(class_names: Sequence[str]) -> Html:
    """Colours, numbers and shapes that the pictures use; the shapes as :py:data:`monai_skelrec.panels.MARKS`."""
    items = []
    for index, name in enumerate(class_names[1:], start=1):
        colour = "#" + "".join(f"{part:02x}" for part in COLOURS[(index - 1) % len(COLOURS)])
        numbered = f"{index} {name}" if len(class_names) > 2 else name
        square = _swatch(f'<path fill="{colour}" d="M3 3h18v18H3z"/>')
        items.append(Html(f"<li>{square}{text(numbered)}</li>"))
    shapes = {
        "o": '<circle cx="12" cy="12" r="{r}"/>',
        "s": '<path d="M5 5h14v14H5z"/>',
        "x": '<path d="M8 8l8 8M16 8l-8 8"/>',
    }
    marks = []
    for mark in MARKS.values():
        shape = shapes[mark.shape].format(r=7 if mark.line else 3.5)
        paint = f'fill="none" stroke="{mark.colour}" stroke-width="2.2"'
        if not mark.line:
            paint = f'fill="{mark.colour}" stroke="{mark.rim}" stroke-width="1.5"'
        drawn = _swatch(f"<g {paint}>{shape}</g>")
        marks.append(Html(f"<li>{drawn}{text(mark.name)}</li>"))
    words = (
        "Each case seen as a whole, and in the slice where most is wrong; marks stand on the prediction, numbers of "
        "classes on the reference. A break is a gap that the reference has not; a false merge is a bridge between "
        "parts that the reference keeps apart."
    )
    lists = [Html(f'<ul class="legend">{join(one)}</ul>') for one in (marks, items)]
    return join([Html(f"<p>{text(words)}</p>"), *lists])


def _swatch(shape: str) -> str:
    return (
        '<svg viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d="M0 0h24v24H0z" fill="#000"/>'
        f"{shape}</svg>"
    )


def _in_words(row: Row, measures: Sequence[Measure]) -> str:
    values = [f"{m.heading} {in_digits(row[m.name], m)}" for m in measures[:4] if m.name in row]
    of = f"Mean of {row['classes']} classes: " if row["classes"] > 1 else ""
    lowest = f", lowest clDice in {row['lowest']}" if row["classes"] > 1 else ""
    return f"{of}{', '.join(values)}{lowest}."


def _pictures(panels: Sequence[Panel]) -> list[Html]:
    """A row of pictures for each view of a case."""
    rows: list[list[Html]] = [[], []]
    for panel in panels:
        rows[panel.title.startswith("Slice")].append(figure(panel.title, panel.alt, panel.png))
    return [Html(f'<div class="figures pictures">{join(row)}</div>') for row in rows if row]


def _capital(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {sentence(name, ""): value for name, value in facts.items()}
