"""Step "label maps -> scores": predictions on disk against references on disk -> tables per case and per class."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .files import replace
from .label_maps import read_label_map, to_class_indices
from .mask_scores import bounding_box, mask_betti_errors, mask_centerline_dice, mask_dice, score_classes

__all__ = [
    "AVERAGE",
    "CONVENTIONS",
    "MERGED",
    "Scores",
    "format_table",
    "read_label_map",
    "read_pair",
    "require_all_scored",
    "score_case",
    "score_indices",
    "score_label_maps",
]

Row = dict[str, Any]

AVERAGE = "class average"
MERGED = "merged foreground"

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

_COLUMNS = ("dice", "centerline_dice", "betti0_error", "betti1_error", "betti2_error")
_HEADINGS = {"dice": "Dice", "centerline_dice": "clDice", "betti0_error": "beta0 error", "betti1_error": "beta1 error"}


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        rows: one a case and class: ``case``, ``class``, ``dice``, ``centerline_dice``, ``betti0_error``,
            ``betti1_error`` and, in 3D, ``betti2_error``.
        summary: one a class, then the class average and the merged foreground: ``class``, ``cases`` (how many count),
            and ``<score>_mean`` and ``<score>_std`` of each score.
        errors: one a case that could not be scored: ``case`` and ``error``, a sentence.
    """

    rows: list[Row]
    summary: list[Row]
    errors: list[dict[str, str]]


def score_label_maps(
    cases: Iterable[Mapping[str, str]],
    predictions_dir: str | Path,
    output_ext: str,
    class_names: Sequence[str],
    label_values: Sequence[int],
    other_values: str,
    output_dir: str | Path,
) -> Scores:
    """Score every predicted label map against its reference, and write the tables.

    Both are read as stored, without reorientation or resampling. A case that cannot be scored is listed and the others
    are still scored; :py:func:`require_all_scored` turns the list into an error afterwards.

    Args:
        cases: dictionaries with ``name`` and ``label``, the path of the reference.
        predictions_dir: holds the predictions, ``<name><output_ext>``, in the values of the references.
        output_ext: ending of the predictions' names, such as ``".nii.gz"``.
        class_names: name of each class, background first.
        label_values: value on disk of each class, as ``class_names``.
        other_values: what a value not listed means: ``"error"``, ``"background"`` or ``"foreground"``.
        output_dir: gets ``scores.csv`` (per case and class), ``summary.csv`` (per class over cases) and
            ``summary.json`` (the same, the cases that failed, and the conventions).

    Returns:
        Rows, summary and errors.

    Raises:
        FileNotFoundError: when ``predictions_dir`` is not a folder.
        ValueError: when there are no cases, or ``class_names`` and ``label_values`` do not fit each other.
    """
    cases, predictions_dir, output_dir = list(cases), Path(predictions_dir), Path(output_dir)
    if not cases:
        raise ValueError("there are no cases to score: cases is empty.")
    if not predictions_dir.is_dir():
        raise FileNotFoundError(f"predictions_dir {str(predictions_dir)!r} is not a folder; predict the cases first.")
    _check_classes(class_names, label_values)

    rows: list[Row] = []
    errors: list[dict[str, str]] = []
    for case in tqdm(cases, desc="scoring", unit="case"):
        try:
            prediction_path = predictions_dir / f"{case['name']}{output_ext}"
            pred, reference = read_pair(prediction_path, case["label"], label_values, other_values)
        except (FileNotFoundError, ValueError) as error:
            errors.append({"case": case["name"], "error": str(error)})
            continue
        rows.extend({"case": case["name"], **row} for row in score_indices(pred, reference, class_names))
    found = Scores(rows, _summarise(rows, class_names), errors)
    _write_tables(found, output_dir, n_cases=len(cases))
    return found


def score_case(
    pred: np.ndarray,
    reference: np.ndarray,
    class_names: Sequence[str],
    label_values: Sequence[int],
    other_values: str = "error",
) -> list[Row]:
    """Score one label map: a row a class that is in either map, then one for all foreground as one mask.

    Args:
        pred: predicted label map, integers, shape (H, W) or (H, W, D), in ``label_values``.
        reference: reference label map on the same grid.
        class_names: name of each class, background first.
        label_values: value of each class in the arrays, as ``class_names``.
        other_values: what a value not listed means: ``"error"``, ``"background"`` or ``"foreground"``.

    Returns:
        Rows with ``class``, ``dice`` and ``centerline_dice`` in [0, 1] (higher is better), and ``betti0_error``,
        ``betti1_error`` and, in 3D, ``betti2_error`` (whole numbers, lower is better). A class in one map only has Dice
        and centreline Dice 0 and the other's Betti numbers as errors; where there is no foreground at all, the merged
        row is NaN.

    Raises:
        ValueError: when the shapes differ or are not 2D or 3D, a value is unknown, or ``class_names`` and
            ``label_values`` do not fit each other.
    """
    _check_classes(class_names, label_values)
    if pred.shape != reference.shape or pred.ndim not in (2, 3):
        raise ValueError(f"pred and reference must be 2D or 3D of one shape, got {pred.shape} and {reference.shape}.")
    pred, reference = (to_class_indices(array, label_values, other_values) for array in (pred, reference))
    return score_indices(pred, reference, class_names)


def score_indices(pred: np.ndarray, reference: np.ndarray, class_names: Sequence[str]) -> list[Row]:
    """As :py:func:`score_case`, of maps that hold class indices already."""
    # everything below costs what the foreground costs, and no score depends on the background around it
    box = bounding_box(np.maximum(pred, reference))
    pred, reference = np.ascontiguousarray(pred[box])[None], np.ascontiguousarray(reference[box])[None]
    voxels = np.bincount(np.concatenate([pred.ravel(), reference.ravel()]), minlength=len(class_names))
    present = (np.flatnonzero(voxels[1:]) + 1).tolist()
    rows = [
        {"class": class_names[index], **scores}
        for index, scores in zip(present, score_classes(_score_masks, pred, reference, present), strict=True)
    ]
    return [*rows, {"class": MERGED, **_score_masks(pred[0] > 0, reference[0] > 0)}]


def read_pair(
    prediction_path: str | Path, reference_path: str | Path, label_values: Sequence[int], other_values: str
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference of one case as class indices; see :py:func:`score_label_maps`.

    Raises:
        FileNotFoundError: when either file is missing.
        ValueError: when either cannot be read, holds unknown values, or their shapes differ.
    """
    maps = []
    for kind, path in (("prediction", prediction_path), ("reference", reference_path)):
        try:
            maps.append(to_class_indices(read_label_map(path)[0], label_values, other_values))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"the {kind} is missing: {error}") from error
        except ValueError as error:
            named = str(error) if str(path) in str(error) else f"{path}: {error}"
            raise ValueError(f"the {kind} cannot be scored: {named}") from error
    pred, reference = maps
    if pred.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must have one shape, got {pred.shape} in {prediction_path} and "
            f"{reference.shape} in {reference_path}."
        )
    return pred, reference


def require_all_scored(scores: Scores) -> Scores:
    """Pass ``scores`` on, or stop with every case that could not be scored; for the end of a run.

    Raises:
        ValueError: when a case could not be scored.
    """
    if scores.errors:
        named = "; ".join(f"{error['case']}: {error['error'].rstrip('.')}" for error in scores.errors)
        raise ValueError(f"{_number_of_cases(len(scores.errors))} could not be scored, the others were: {named}.")
    return scores


def format_table(summary: Sequence[Row]) -> str:
    """Draw the summary of :py:func:`score_label_maps` as a table for the terminal, with its conventions below."""
    # with one class, its average and the merged foreground say the same again
    shown = [row for row in summary if len(summary) > 3 or row["class"] not in (AVERAGE, MERGED)]
    table = [["class", "cases", *_HEADINGS.values()]]
    for row in shown:
        cells = (_mean_and_spread(row[f"{score}_mean"], row[f"{score}_std"]) for score in _HEADINGS)
        table.append([row["class"], str(row["cases"]), *cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table]
    rule = "-" * len(lines[0])
    lines.insert(1, rule)
    if len(shown) > 1:
        lines.insert(-2, rule)
    lines.append("")
    for what, how in CONVENTIONS.items():
        lines.extend(textwrap.wrap(f"{what}: {how}.", max(len(rule), 80), subsequent_indent="  "))
    return "\n".join(lines)


def _check_classes(class_names: Sequence[str], label_values: Sequence[int]) -> None:
    if len(class_names) != len(label_values) or len(class_names) < 2 or len(set(label_values)) < len(label_values):
        raise ValueError(
            "class_names and label_values must name background and at least one class, each with a value of its own, "
            f"got {len(class_names)} names and values {list(label_values)}."
        )


def _score_masks(pred: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    scores = (mask_dice(pred, reference), mask_centerline_dice(pred, reference), *mask_betti_errors(pred, reference))
    return dict(zip(_COLUMNS, scores, strict=False))


def _summarise(rows: Sequence[Row], class_names: Sequence[str]) -> list[Row]:
    """Mean and sample standard deviation over cases, per class; see :py:class:`Scores`."""
    columns = [column for column in _COLUMNS if any(column in row for row in rows)] or list(_COLUMNS[:-1])
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        if row["class"] != MERGED:
            by_case.setdefault(row["case"], []).append(row)
    averages = [
        {
            "class": AVERAGE,
            **{column: float(np.mean([row[column] for row in of_case])) for column in columns if column in of_case[0]},
        }
        for of_case in by_case.values()
    ]
    summary = []
    for name in (*class_names[1:], AVERAGE, MERGED):
        of_class = [row for row in (*rows, *averages) if row["class"] == name and not math.isnan(row["dice"])]
        entry: Row = {"class": name, "cases": len(of_class)}
        for column in columns:
            values = [row[column] for row in of_class if column in row]
            entry[f"{column}_mean"] = float(np.mean(values)) if values else math.nan
            entry[f"{column}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        summary.append(entry)
    return summary


def _write_tables(scores: Scores, output_dir: Path, n_cases: int) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    _write(output_dir / "scores.csv", _as_csv(scores.rows, first=("case", "class")))
    _write(output_dir / "summary.csv", _as_csv(scores.summary, first=("class", "cases")))
    content = {
        "conventions": CONVENTIONS,
        "cases": {"given": n_cases, "scored": n_cases - len(scores.errors)},
        "errors": scores.errors,
        # NaN is no JSON
        "summary": [{key: None if value != value else value for key, value in row.items()} for row in scores.summary],
    }
    _write(output_dir / "summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def _as_csv(rows: Sequence[Row], first: Sequence[str]) -> str:
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


def _number_of_cases(number: int) -> str:
    return f"{number} case{'s' if number > 1 else ''}"
