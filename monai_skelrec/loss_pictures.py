"""Step "scores -> table", its pictures: label maps of several losses -> one case, with the faults of each loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .case_scores import MERGED, score_indices
from .comparisons import read_run
from .loss_table import LossRun, complete_runs
from .measures import MEASURES
from .panels import Case, matplotlib_module, read_predictions
from .picture_sheets import Tile, draw_sheet
from .projections import view_case
from .report_parts import in_digits
from .summaries import average_cases

__all__ = ["Evaluation", "differing_cases", "draw_differences", "draw_losses"]

Row = dict[str, Any]

_NOTED = ("centerline_dice", "betti0_error")


class Evaluation(NamedTuple):
    """What was scored in one part of the report of a run, and how its label maps are read.

    Attributes:
        cases: dictionaries with ``name``, ``image`` and ``label`` (paths).
        class_names: background first.
        label_values: value on disk of each class, as ``class_names``.
        other_values: what a value not listed means.
        output_ext: ending of the predictions' names.
        voxel_size: edges of a voxel, for formats that do not hold them; None for 1.
    """

    cases: Sequence[Mapping[str, str]]
    class_names: Sequence[str]
    label_values: Sequence[int]
    other_values: str
    output_ext: str
    voxel_size: Sequence[float] | None


def draw_differences(
    output_dir: Path,
    runs: Sequence[LossRun],
    reports: Sequence[str],
    evaluation_of: Callable[[LossRun, str], Evaluation],
    limit: int = 3,
    measure: str = "centerline_dice",
) -> list[Path]:
    """Draw the cases on which the losses of a table differ most: :py:func:`differing_cases`, :py:func:`draw_losses`.

    Scores and label maps are those of the lowest seed that every loss of the table has finished. A case is drawn from
    the fold that scored it, the first one where several have, and from any part of the report.

    Args:
        output_dir: of the comparison; gets ``pictures/<case>.png``, those of earlier calls are removed.
        runs: that are scored.
        reports: folders of scores within each run's, with the label maps in ``predictions``.
        evaluation_of: what a run's folder of scores was made of.
        limit: how many cases; 0 for none.
        measure: column of the scores by which the losses differ.

    Returns:
        Paths of the pictures, of the case with the largest difference first.

    Raises:
        ImportError: when matplotlib is not installed.
        FileNotFoundError: when a label map is missing.
        ValueError: when a file cannot be read.
    """
    counted = complete_runs(runs)
    if limit < 1 or not counted:
        return []
    seed = min(run.seed for run in counted)
    places: dict[str, tuple[str, str]] = {}
    folders: dict[tuple[str, str], dict[str, LossRun]] = {}
    scores: dict[str, list[Row]] = {run.loss: [] for run in counted}
    for run in counted:
        for report in reports if run.seed == seed else ():
            place = (run.fold, report)
            folders.setdefault(place, {})[run.loss] = run
            for row in average_cases(read_run(run.folder / report).rows):
                if places.setdefault(row["case"], place) == place:
                    scores[run.loss].append(row)
    chosen = differing_cases(scores, limit, measure)
    evaluations = {
        place: evaluation_of(next(iter(folders[place].values())), place[1])
        for place in dict.fromkeys(places[name] for name in chosen)
    }
    paths = []
    for name in chosen:
        fold, report = places[name]
        evaluation = evaluations[fold, report]
        case = next((case for case in evaluation.cases if case["name"] == name), None)
        if case is None:
            raise ValueError(
                f"case {name!r} was scored in fold {fold} and is not among its {len(evaluation.cases)} cases any more; "
                "give the data set that the runs were scored on, or set --pictures 0."
            )
        file = f"predictions/{name}{evaluation.output_ext}"
        drawn = draw_losses(
            case["image"],
            case["label"],
            {loss: run.folder / report / file for loss, run in folders[fold, report].items()},
            output_dir / "pictures" / f"{name}.png",
            evaluation.class_names,
            evaluation.label_values,
            other_values=evaluation.other_values,
            spacing=evaluation.voxel_size,
            line=f"seed {seed}, fold {fold}; {_range(scores, name, measure)}",
        )
        paths.append(drawn)
    # those of earlier calls, which no table shows any more
    for old in set((output_dir / "pictures").glob("*.png")) - set(paths):
        old.unlink()
    return paths


def differing_cases(scores: Mapping[str, Sequence[Row]], limit: int, measure: str = "centerline_dice") -> list[str]:
    """Cases on which losses differ most: with the largest difference of the best and the worst class average.

    Args:
        scores: by loss, its rows of :py:func:`monai_skelrec.summaries.average_cases`.
        limit: how many.
        measure: that is looked at, a name of :py:data:`monai_skelrec.measures.MEASURES`.

    Returns:
        Names, the largest difference first, then in the order of the first loss. A case that a loss has no finite value
        of is left out.
    """
    values = _by_case(scores, measure)
    spreads = {case: max(found) - min(found) for case, found in values.items() if len(found) == len(scores)}
    return sorted(spreads, key=lambda case: -spreads[case])[: max(limit, 0)]


def draw_losses(
    image_path: str | Path | None,
    reference_path: str | Path,
    predictions: Mapping[str, str | Path],
    output_path: str | Path,
    class_names: Sequence[str],
    label_values: Sequence[int],
    *,
    other_values: str = "error",
    spacing: Sequence[float] | None = None,
    line: str = "",
) -> Path:
    """Draw one case as a PNG: image, reference, and the prediction of each loss with its faults marked and its scores.

    All panels show the same part of the case, see :py:func:`monai_skelrec.panels.read_predictions`, in the same way,
    see :py:func:`monai_skelrec.reports.draw_case`. Below the name of a loss stand centreline Dice and beta0 error of
    the case, the means over its classes.

    Args:
        image_path: scan or picture; None where there is none.
        reference_path: reference label map on the grid of the image.
        predictions: by loss, its label map on the same grid; at least one.
        output_path: the PNG to write; its name without ending is the title.
        class_names: name of each class, background first.
        label_values: value on disk of each class, as ``class_names``.
        other_values: what a value not listed means: ``"error"``, ``"background"``, ``"foreground"`` or ``"nearest"``.
        spacing: edges of a voxel, for formats that do not hold them.
        line: below the title.

    Returns:
        ``output_path``.

    Raises:
        ImportError: when matplotlib is not installed.
        FileNotFoundError: when a file is missing.
        ValueError: when there is no prediction, a file cannot be read, or the shapes differ.
    """
    matplotlib_module("figure")
    if not predictions:
        raise ValueError(f"predictions must hold a label map of one loss at least, got none for {output_path}.")
    paths = list(predictions.values())
    cases = read_predictions(image_path, reference_path, paths, label_values, other_values, spacing)
    tiles: list[Tile] = []
    for loss, case in zip(predictions, cases, strict=True):
        view = view_case(
            image=case.image,
            reference=case.reference,
            pred=case.pred,
            tube=None,
            marks=case.marks,
            affine=case.affine,
            spacing=case.spacing,
        )
        if not tiles:
            tiles += [Tile(title, title, view) for title in view.panels if title != "Prediction"]
        tiles.append(Tile(loss, "Prediction", view, _note(case, class_names)))
    classes = sorted({index for case in cases for index in case.classes})
    names = {index: class_names[index] for index in classes}
    return draw_sheet(output_path, Path(output_path).stem, line, tiles, names)


def _by_case(scores: Mapping[str, Sequence[Row]], measure: str) -> dict[str, list[float]]:
    """For each case the finite values of all losses."""
    values: dict[str, list[float]] = {}
    for row in (row for rows in scores.values() for row in rows):
        if np.isfinite(row.get(measure, np.nan)):
            values.setdefault(row["case"], []).append(row[measure])
    return values


def _range(scores: Mapping[str, Sequence[Row]], case: str, measure: str) -> str:
    """From the lowest loss to the highest one, in words."""
    values, of = _by_case(scores, measure)[case], MEASURES[measure]
    return f"{of.heading} of the losses from {in_digits(min(values), of)} to {in_digits(max(values), of)}"


def _note(case: Case, class_names: Sequence[str]) -> str:
    """Scores of a case, each the mean over its classes."""
    rows = [
        row for row in score_indices(case.pred, case.reference, class_names, measures=_NOTED) if row["class"] != MERGED
    ]
    if not rows:
        return "no foreground"
    score, error = (float(np.mean([row[name] for row in rows])) for name in _NOTED)
    # errors of one class are whole numbers, means over classes are not
    return f"{MEASURES[_NOTED[0]].heading} {score:.3f}, {MEASURES[_NOTED[1]].heading} {round(error, 2):g}"
