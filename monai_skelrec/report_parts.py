"""Step "scores -> report": what every page says in one way: digits, conventions, and where the numbers come from."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .measures import Measure
from .page import Html, definitions, join, table, text
from .summaries import CONVENTIONS

__all__ = ["conventions_of", "count", "heading", "in_digits", "provenance", "sentence"]

_PACKAGES = ("monai_skelrec", "monai", "torch", "scikit-image", "scipy", "numpy")


def conventions_of(measures: Sequence[Measure]) -> Html:
    """Every measure that is shown, and what holds for all of them."""
    rows = []
    for measure in measures:
        better = "higher is better" if measure.higher_is_better else "lower is better"
        unit = {"": "share, 0 to 1", "count": "number", "mm": "mm"}.get(measure.unit, measure.unit)
        rows.append((measure.heading, f"{unit}; {better}", sentence(measure.convention), sentence(measure.absent)))
    of_all = definitions({what: sentence(how) for what, how in CONVENTIONS.items()})
    headings = ("Measure", "Unit", "What it is", "A class in one of the two maps only")
    return join([of_all, table("Measures of this report", headings, rows, words=(1, 2, 3))])


def heading(measure: Measure) -> Html:
    """A measure at the head of a column: its unit and which way is better, for eye and ear."""
    arrow, better = ("&uarr;", "higher is better") if measure.higher_is_better else ("&darr;", "lower is better")
    unit = " <small>mm</small>" if measure.unit == "mm" else ""
    return Html(
        f'{text(measure.heading)}{unit} <span aria-hidden="true">{arrow}</span><span class="hidden">, {better}</span>'
    )


def in_digits(value: float, measure: Measure, sign: bool = False) -> str:
    """A value in the digits of its measure."""
    if math.isnan(value):
        return "n/a"
    digits = 3 if measure.unit == "" else 2
    return f"{value:{'+' if sign else ''}.{digits}f}"


def provenance() -> dict[str, Any]:
    """When, with what and by which command, for the head of a report."""
    versions = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # a checkout that is not installed has no version
    command = sys.argv
    if Path(command[0]).parts[-3:] == ("monai", "bundle", "__main__.py"):
        command = ["python", "-m", "monai.bundle", *command[1:]]
    return {
        "Date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "Versions": ", ".join(versions),
        "Command": Html(f"<code>{text(shlex.join(command))}</code>"),
    }


def sentence(words: str, end: str = ".") -> str:
    """Words that begin with a capital and end with a full stop, or with ``end``."""
    words = words.strip()
    return words[:1].upper() + words[1:] + (end if words and words[-1] not in ".!?" and words != "0" else "")


def count(number: int, what: str) -> str:
    """A number and what it counts."""
    return f"{number} {what}{'' if number == 1 else 's'}"
