"""Step "scores -> report": panels of one case in rows, a heading above and a legend below, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import replace
from .panels import MARKS, Mark, draw_marks, matplotlib_module
from .projections import COLOURS, View

__all__ = ["Tile", "draw_sheet"]

_PAPER, _INK, _FAINT = "#14171c", "#f2f4f7", "#aab2bd"
_WIDTH, _DPI = 12.0, 150  # inches; text stays readable at 1200 px
_MARGIN, _GAP, _HEADER, _PANEL_TITLE, _NOTE, _LEGEND_ROW = 0.15, 0.12, 0.78, 0.34, 0.26, 0.28
_COLUMNS = 4
_PREDICTION = "Prediction"


@dataclass(frozen=True)
class Tile:
    """One panel of a sheet.

    Attributes:
        title: what it shows.
        panel: which of the view's panels.
        view: whose faults are marked where it shows the prediction, in one size on all panels of a sheet.
        note: a second, smaller line; empty for none.
    """

    title: str
    panel: str
    view: View
    note: str = ""


def draw_sheet(
    path: str | Path, heading: str, line: str, tiles: Sequence[Tile], class_names: Mapping[int, str]
) -> Path:
    """Draw panels of one extent, at most four in a row, or two where they are flat, in rows of about the same length.

    Args:
        path: the PNG; replaced at once or not at all.
        heading: in large letters.
        line: below it.
        tiles: at least one.
        class_names: of the classes that occur, by index, for the legend.

    Returns:
        ``path``.

    Raises:
        ImportError: when matplotlib is not installed.
    """
    ratio = tiles[0].view.ratio
    rows = -(-len(tiles) // (_COLUMNS if ratio > 0.55 else _COLUMNS // 2))
    columns = -(-len(tiles) // rows)
    width = (_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    height = width * min(ratio, 1.7)
    titles = _PANEL_TITLE + (_NOTE if any(tile.note for tile in tiles) else 0)
    legend = [(name, tuple(COLOURS[(index - 1) % len(COLOURS)] / 255)) for index, name in class_names.items()]
    marks = [mark for kind, mark in MARKS.items() if any(len(tile.view.marks[kind]) for tile in tiles)]
    legend_rows = _rows_of_legend([*(name for name, _ in legend), *(mark.name for mark in marks)])
    total = _HEADER + rows * (titles + height) + _LEGEND_ROW * legend_rows + 2 * _MARGIN
    figure = matplotlib_module("figure").Figure(figsize=(_WIDTH, total), dpi=_DPI, facecolor=_PAPER)
    figure.text(_MARGIN / _WIDTH, 1 - 0.12 / total, heading, color=_INK, fontsize=16, weight="bold", va="top")
    figure.text(_MARGIN / _WIDTH, 1 - 0.46 / total, line, color=_FAINT, fontsize=13, va="top")
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        left = _MARGIN + column * (width + _GAP)
        bottom = total - _HEADER - (row + 1) * (titles + height)
        axes = figure.add_axes((left / _WIDTH, bottom / total, width / _WIDTH, height / total))
        _draw_tile(axes, tile)
        if tile.panel == _PREDICTION:
            others = [other.view for other in tiles if other.panel == _PREDICTION and other is not tile]
            draw_marks(axes, tile.view, others)
    _write_legend(figure, total, legend, marks, legend_rows)

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda beside: figure.savefig(beside, format="png", dpi=_DPI, facecolor=_PAPER))
    return path


def _draw_tile(axes: Any, tile: Tile) -> None:
    view, pad = tile.view, 6.0
    axes.imshow(
        view.panels[tile.panel], extent=view.extent, aspect="equal", origin="lower", interpolation=view.interpolation
    )
    if tile.note:
        at = {"xy": (0.5, 1), "xycoords": "axes fraction", "xytext": (0, pad), "textcoords": "offset points"}
        axes.annotate(tile.note, **at, color=_FAINT, fontsize=11.5, ha="center")
        pad += 72 * _NOTE
    title = axes.set_title(tile.title, color=_INK, fontsize=13, pad=pad)
    # a long name in smaller letters rather than over its neighbour
    room = axes.get_window_extent().width / title.get_window_extent().width
    if room < 1:
        title.set_fontsize(13 * 0.96 * room)  # letters are rounded to whole pixels
    axes.set_axis_off()


def _rows_of_legend(names: Sequence[str]) -> int:
    # inches of an entry: mark, space, and about 0.1 a letter
    return int(np.ceil(sum(0.55 + 0.1 * len(name) for name in names) / (_WIDTH - 2 * _MARGIN))) if names else 0


def _write_legend(
    figure: Any, total: float, legend: Sequence[tuple[str, tuple[float, ...]]], marks: Sequence[Mark], rows: int
) -> None:
    if not rows:
        return
    patches, lines = matplotlib_module("patches"), matplotlib_module("lines")
    handles: list[Any] = [patches.Patch(facecolor=colour, label=name) for name, colour in legend]
    for mark in marks:
        style = {"markersize": min(mark.size + 3, 11), "markeredgewidth": mark.line or 0.5, "markeredgecolor": _INK}
        if mark.line:
            style |= {"markerfacecolor": "none", "markeredgecolor": mark.colour}
        else:
            style |= {"color": mark.colour}
        handles.append(lines.Line2D([], [], linestyle="none", label=mark.name, marker=mark.shape, **style))
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.06 / total),
        ncols=int(np.ceil(len(handles) / rows)),
        frameon=False,
        labelcolor=_INK,
        fontsize=12,
        handlelength=1.0,
        handleheight=0.9,
        handletextpad=0.5,
        columnspacing=1.4,
        borderaxespad=0.0,
    )
