"""Step "label maps -> scores": two folders -> cases, prediction and reference matched by name and read on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .grids import CRACK_MASKS, PICTURES, VOLUMES, Grid, ending, grid_difference, voxel_size
from .label_maps import as_labels, read_image, to_class_indices

__all__ = ["Matched", "Pair", "indices_of", "match_label_maps", "read_pair", "read_raw_pair"]

_SHOWN = 3  # names in one message


class Matched(NamedTuple):
    """What two folders hold.

    Attributes:
        cases: dictionaries with ``name``, ``label`` and ``prediction`` (paths), sorted by name.
        missing: a dictionary with ``case`` and ``error``, a sentence, for each file without its counterpart.
    """

    cases: list[dict[str, str]]
    missing: list[dict[str, str]]


class Pair(NamedTuple):
    """Prediction and reference on one grid, as they are stored; ``spacing`` is None where neither file has one."""

    pred: np.ndarray
    reference: np.ndarray
    spacing: tuple[float, ...] | None


def match_label_maps(
    predictions_dir: str | Path, references_dir: str | Path, suffixes: Sequence[str] = ("_0000",)
) -> Matched:
    """Match the label maps of two folders by name; the ending of the name, hence the format, may differ.

    Args:
        predictions_dir: folder of label maps, of any tool.
        references_dir: folder of label maps.
        suffixes: what a name may bear at its end, before its ending, on either side: names are the same without.

    Returns:
        The cases, named as the references, and what has no counterpart. A name that stands for several files of one
        folder is no case but a mistake, and listed with the missing.

    Raises:
        FileNotFoundError: when a folder does not exist.
        ValueError: when a folder holds no label map, or no name of one is in the other.
    """
    sides = {
        "prediction": _by_name(Path(predictions_dir), "predictions_dir", suffixes),
        "reference": _by_name(Path(references_dir), "references_dir", suffixes),
    }
    predictions, references = sides.values()
    if not predictions.keys() & references.keys():
        names = [", ".join(path.name for path in _first(side)) for side in sides.values()]
        raise ValueError(
            f"no prediction in {str(predictions_dir)!r} ({names[0]} ...) has the name of a reference in "
            f"{str(references_dir)!r} ({names[1]} ...); rename them, or list in suffixes what names bear at their ends."
        )
    cases, missing = [], []
    for name in sorted(predictions.keys() | references.keys()):
        found = {kind: side.get(name, []) for kind, side in sides.items()}
        absent = [kind for kind, files in found.items() if not files]
        doubled = [files for files in found.values() if len(files) > 1]
        if absent:
            there = next(files[0] for files in found.values() if files)
            missing.append({"case": name, "error": f"the {absent[0]} is missing: {there} has no counterpart."})
        elif doubled:
            files = ", ".join(path.name for path in doubled[0])
            missing.append({"case": name, "error": f"{len(doubled[0])} files have this name ({files}): keep one."})
        else:
            prediction, reference = (str(files[0]) for files in found.values())
            cases.append({"name": name, "label": reference, "prediction": prediction})
    return Matched(cases, missing)


def read_raw_pair(prediction_path: str | Path, reference_path: str | Path, check_grid: bool = True) -> Pair:
    """Read prediction and reference of one case as they are stored; nothing is turned or resampled.

    Args:
        prediction_path: label map.
        reference_path: label map.
        check_grid: whether spacing, direction and origin must agree where both files have them; shapes always must.

    Returns:
        Integers, and the voxel size of the reference, or of the prediction where the reference has none.

    Raises:
        FileNotFoundError: when either file is missing.
        ValueError: when either cannot be read or holds fractions, or they lie on different grids.
    """
    maps, grids = [], []
    for kind, path in (("prediction", prediction_path), ("reference", reference_path)):
        try:
            array, affine = read_image(path)
            maps.append(as_labels(array, path))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"the {kind} is missing: {error}") from error
        except ValueError as error:
            raise ValueError(f"the {kind} cannot be scored: {error}") from error
        fits = affine is not None and len(affine) == array.ndim + 1
        grids.append(Grid(array.shape, affine if fits else None))
    pred, reference = grids
    if pred.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must have one shape, got {pred.shape} in {prediction_path} and "
            f"{reference.shape} in {reference_path}."
        )
    by_rows = (*PICTURES, *CRACK_MASKS)
    volumes = [path for path in (prediction_path, reference_path) if not str(path).lower().endswith(by_rows)]
    # NumPy's files are in whatever order their writer took
    if len(volumes) == 1 and ending(volumes[0]) != ".npy":
        raise ValueError(
            f"prediction {prediction_path} and reference {reference_path} must both be pictures or both be volumes: "
            "pictures are stored by rows and 2D volumes by columns; convert one of them."
        )
    difference = grid_difference(pred, reference) if check_grid else None
    if difference is not None:
        raise ValueError(
            f"prediction and reference must lie on one grid, got {difference} in {prediction_path} and "
            f"{reference_path}; resample the prediction, or set check_grid to False where its header is wrong."
        )
    affine = pred.affine if reference.affine is None else reference.affine
    return Pair(maps[0], maps[1], None if affine is None else voxel_size(affine))


def read_pair(
    prediction_path: str | Path,
    reference_path: str | Path,
    label_values: Sequence[int],
    other_values: str,
    check_grid: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference of one case as class indices; see :py:func:`read_raw_pair`.

    Raises:
        FileNotFoundError: when either file is missing.
        ValueError: when either cannot be read, holds unknown values, or they lie on different grids.
    """
    pair = read_raw_pair(prediction_path, reference_path, check_grid)
    return indices_of(pair, prediction_path, reference_path, label_values, other_values)


def indices_of(
    pair: Pair, prediction_path: str | Path, reference_path: str | Path, label_values: Sequence[int], other_values: str
) -> tuple[np.ndarray, np.ndarray]:
    """Class indices of a pair; an unknown value is named with its file."""
    found = []
    for kind, path, array in (
        ("prediction", prediction_path, pair.pred),
        ("reference", reference_path, pair.reference),
    ):
        try:
            found.append(to_class_indices(array, label_values, other_values))
        except ValueError as error:
            raise ValueError(f"the {kind} cannot be scored: {path}: {error}") from error
    return found[0], found[1]


def _by_name(folder: Path, knob: str, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{knob} {str(folder)!r} is not a folder; set --{knob} to a folder of label maps.")
    names: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        end = ending(path.name)
        if end and path.is_file() and not path.name.startswith("."):
            name = path.name[: -len(end)]
            # the longest first, so that one suffix may end in another
            for suffix in sorted(suffixes, key=len, reverse=True):
                if suffix and name.endswith(suffix) and name != suffix:
                    name = name[: -len(suffix)]
                    break
            names.setdefault(name, []).append(path)
    if not names:
        raise ValueError(
            f"{knob} {str(folder)!r} holds no label map: expected names that end in one of "
            f"{' '.join((*VOLUMES, *PICTURES))}."
        )
    return names


def _first(side: dict[str, list[Path]]) -> list[Path]:
    return [side[name][0] for name in sorted(side)[:_SHOWN]]
