"""Step "scores -> report": numbers -> plots as SVG that fit a phone, in the light and in the dark, with their words."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .measures import Measure
from .panels import matplotlib_module
from .projections import COLOURS

__all__ = ["MARKERS", "box_plot", "difference_plot", "scatter_plot"]

# with the colour, so that it is not the colour alone
MARKERS = "osD^vP<X>*phd"

_WIDTH = 4.2  # inches, 400 px: as a phone shows it
_ROW, _FRAME = 0.27, 0.85  # inches of a class, and of axis and labels
# placeholders, not seen: the page's own colours take their place
_INK, _FAINT = "#010203", "#040506"
_STYLE = (
    "<style>svg{color:#1b2026;--faint:#c9cfd6}"
    "@media(prefers-color-scheme:dark){svg{color:#e8ecf1;--faint:#3c4652}}</style>"
)

_DIFFERENCE = tuple(COLOURS[0] / 255)

Plot = tuple[str, str]


def box_plot(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], measure: Measure) -> Plot:
    """Draw a box for each class with the points of its cases; the median's bar, quartiles, and whiskers to all values.

    Args:
        rows: one a case and class, with ``case``, ``class`` and the measure's column.
        classes: in the order from top to bottom; those without a value are left out.
        measure: what is drawn.

    Returns:
        SVG, and what is to be seen on it in words; empty texts where there is no value.

    Raises:
        ImportError: when matplotlib is not installed.
    """
    values = {name: [(row["case"], row[measure.name]) for row in rows if row["class"] == name] for name in classes}
    kept = {name: [pair for pair in found if math.isfinite(pair[1])] for name, found in values.items()}
    kept = {name: found for name, found in kept.items() if found}
    if not kept:
        return "", ""
    figure, axes = _axes(_ROW * len(kept) + _FRAME)
    for row, (name, found) in enumerate(kept.items()):
        numbers = np.array([value for _, value in found])
        line = {"color": _INK, "linewidth": 1.1}
        axes.boxplot(
            numbers,
            positions=[row],
            widths=0.56,
            orientation="horizontal",
            whis=(0, 100),
            showfliers=False,
            manage_ticks=False,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops={"color": _INK, "linewidth": 2.4},
        )
        # spread by golden ratio: neighbours in the list never lie on each other, and a second run draws the same
        spread = ((np.arange(numbers.size) * 0.618) % 1 - 0.5) * 0.5
        axes.scatter(
            numbers, row + spread, s=15, color=_colour(classes, name), edgecolors=_INK, linewidths=0.5, zorder=3
        )
    axes.set_yticks(range(len(kept)), list(kept))
    axes.invert_yaxis()
    axes.set_xlabel(_axis_label(measure))
    _set_limits(axes, measure)
    return _svg(figure), _words_for_boxes(kept, measure)


def scatter_plot(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], across: Measure, up: Measure) -> Plot:
    """Draw one measure against another, a point a case and class, each class with a colour and a shape of its own.

    Args as :py:func:`box_plot`; measures from 0 to 1.
    """
    shown = [row for row in rows if row["class"] in classes]
    shown = [row for row in shown if math.isfinite(row[across.name]) and math.isfinite(row[up.name])]
    if not shown:
        return "", ""
    present = [name for name in classes if any(row["class"] == name for row in shown)]
    figure, axes = _axes(4.0 + 0.24 * math.ceil(len(present) / 3))
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle="--", zorder=1)
    for name in present:
        places = [(row[across.name], row[up.name]) for row in shown if row["class"] == name]
        marker = MARKERS[classes.index(name) % len(MARKERS)]
        style = {"color": _colour(classes, name), "edgecolors": _INK, "linewidths": 0.5, "alpha": 0.9}
        axes.scatter(*zip(*places, strict=True), s=30, marker=marker, label=name, zorder=3, **style)
    lowest = min(min(row[across.name], row[up.name]) for row in shown)
    limits = (math.floor(10 * min(lowest, 0.9)) / 10 - 0.02, 1.02)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_xlabel(_axis_label(across))
    axes.set_ylabel(_axis_label(up))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=_INK, fontsize=9, handletextpad=0.2)
    below = sum(row[up.name] < row[across.name] for row in shown)
    means = [float(np.mean([row[measure.name] for row in shown])) for measure in (across, up)]
    return _svg(figure), (
        f"{up.heading} against {across.heading}, {len(shown)} points, one a case and class, of {len(present)} "
        f"class{'es' if len(present) > 1 else ''}. Mean {across.heading} {means[0]:.3f}, mean {up.heading} "
        f"{means[1]:.3f}. In {below} points {up.heading} is the lower of the two."
    )


def difference_plot(
    rows: Sequence[tuple[str, Sequence[float], float, float, float]], measure: Measure, label: str
) -> Plot:
    """Draw paired differences: for each row its points, their mean and its confidence interval.

    Args:
        rows: name, differences, mean, lower and upper end of the interval (NaN for none).
        measure: what the differences are of.
        label: of the axis, what is subtracted from what.
    """
    if not rows:
        return "", ""
    figure, axes = _axes(_ROW * len(rows) + _FRAME)
    axes.axvline(0, color=_INK, linewidth=1, linestyle="--", zorder=1)
    words = []
    for row, (name, differences, mean, low, high) in enumerate(rows):
        spread = ((np.arange(len(differences)) * 0.618) % 1 - 0.5) * 0.5
        axes.scatter(differences, row + spread, s=12, facecolors="none", edgecolors=_INK, linewidths=0.5, alpha=0.6)
        if math.isfinite(low):
            axes.plot([low, high], [row, row], color=_INK, linewidth=2.4, solid_capstyle="butt", zorder=3)
        axes.scatter([mean], [row], s=34, marker="D", color=_DIFFERENCE, edgecolors=_INK, zorder=4)
        words.append(f"{name} {mean:+.3g}" + (f" ({low:+.3g} to {high:+.3g})" if math.isfinite(low) else ""))
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    unit = f", {measure.unit}" if measure.unit == "mm" else ""
    axes.set_xlabel(f"{label}{unit} ({'right' if measure.higher_is_better else 'left'} is better)")
    better = "above" if measure.higher_is_better else "below"
    return _svg(figure), f"{label}, mean difference and interval, {better} 0 is better. {'; '.join(words)}."


def _axes(height: float) -> tuple[Any, Any]:
    figure = matplotlib_module("figure").Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.grid(axis="x", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as SVG without references to the outside, in the colours of the page."""
    drawn = io.StringIO()
    # text stays text: small, sharp, and searched by the browser
    with matplotlib_module("style").context(
        {"svg.fonttype": "none", "svg.hashsalt": "plot", "font.family": "sans-serif"}
    ):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace(_INK, "currentColor").replace(_FAINT, "var(--faint)")
    return text.replace(">", f">{_STYLE}", 1)


def _colour(classes: Sequence[str], name: str) -> tuple[float, ...]:
    return tuple(COLOURS[classes.index(name) % len(COLOURS)] / 255) if name in classes else (0.6, 0.6, 0.6)


def _axis_label(measure: Measure) -> str:
    unit = f", {measure.unit}" if measure.unit == "mm" else ""
    return f"{measure.heading}{unit} ({'higher' if measure.higher_is_better else 'lower'} is better)"


def _set_limits(axes: Any, measure: Measure) -> None:
    if measure.unit == "":
        low = axes.get_xlim()[0]
        axes.set_xlim(max(low, -0.02), 1.02) if measure.higher_is_better else axes.set_xlim(left=-0.02)
    elif measure.unit in ("count", "mm"):
        axes.set_xlim(left=-0.02 * axes.get_xlim()[1])


def _words_for_boxes(values: Mapping[str, Sequence[tuple[str, float]]], measure: Measure) -> str:
    medians = {name: float(np.median([value for _, value in found])) for name, found in values.items()}
    ranked = sorted(medians, key=lambda name: medians[name], reverse=measure.higher_is_better)
    sign = 1 if measure.higher_is_better else -1
    worst, name, value = min(
        ((case, name, value) for name, found in values.items() for case, value in found), key=lambda one: sign * one[2]
    )
    unit = f" {measure.unit}" if measure.unit == "mm" else ""
    best = f"Best median {medians[ranked[0]]:.3g}{unit} ({ranked[0]})"
    if len(ranked) > 1:
        best += f", worst median {medians[ranked[-1]]:.3g}{unit} ({ranked[-1]})"
    return (
        f"Box plot of {measure.heading} for {len(ranked)} class{'es' if len(ranked) > 1 else ''}, a point a case. "
        f"{best}. "
        f"Worst single value {value:.3g}{unit}: {name} of case {worst}."
    )
