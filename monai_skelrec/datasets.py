"""Folders on disk -> list of cases -> folds: the first step of every workflow.

A case is a dictionary of strings: ``name`` (of its label map and of its row in every table), ``image`` and ``label``
(paths), and ``group`` (cases of one group never stand on both sides of a split).
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .grids import PICTURES, VOLUMES, grid_difference, read_grid, reason_of

__all__ = ["LAYOUTS", "PICTURES", "VOLUMES", "Split", "list_cases", "split_cases"]

Case = dict[str, str]

_SHOWN = 10  # problems printed in one message; the rest is counted


class Split(NamedTuple):
    """The two sides of one fold."""

    training: list[Case]
    held_out: list[Case]


def list_cases(
    layout: str,
    dataset_dir: str,
    spatial_dims: int = 3,
    modality: str = "all",
    case_folders: Sequence[str] = ("images", "labels"),
) -> list[Case]:
    """Find every image with its label, and refuse a folder in which something is missing, doubled or unreadable.

    Only headers are read.

    Args:
        layout: how the files are named, seen from ``dataset_dir``:

            - ``"topcow"``: ``imagesTr/topcow_{ct,mr}_NNN_0000.nii.gz``, ``cow_seg_labelsTr/topcow_{ct,mr}_NNN.nii.gz``;
              CTA and MRA of one patient are one group;
            - ``"toothfairy"``: a folder for each patient with ``data.npy`` and ``gt_alpha.npy``; patients who have
              only ``gt_sparse.npy`` are left out;
            - ``"toothfairy2"``: ``imagesTr/NAME_0000.mha`` and ``labelsTr/NAME.mha`` (ToothFairy 2 and 3);
            - ``"drive"``: ``training/images/NN_training.tif`` and ``training/1st_manual/NN_manual1.gif``; given the
              folder ``training`` or ``test`` itself, that one is taken;
            - ``"roads"``: ``train/sat/NAME.tiff`` and ``train/map/NAME.tif`` (Massachusetts Roads); given the folder
              ``train``, ``valid`` or ``test`` itself, that one is taken;
            - ``"crackforest"``: ``image/NNN.jpg`` and ``groundTruth/NNN.mat``; pictures that nobody annotated are left
              out;
            - ``"folder"``: ``images/NAME.*`` and ``labels/NAME.*``, any of :py:data:`VOLUMES` or :py:data:`PICTURES`.
        dataset_dir: the folder.
        spatial_dims: 3 for volumes, 2 for pictures.
        modality: ``"ct"`` or ``"mr"`` takes one modality of ``"topcow"``, ``"all"`` takes both.
        case_folders: of layout ``"folder"``: what the two folders are called, that of the images first.

    Returns:
        Cases sorted by name.

    Raises:
        FileNotFoundError: when the folder, or one of the folders that the layout needs, does not exist.
        ValueError: when the layout or the modality is unknown, other folders are named for a layout that has its own,
            when no case is found, or when files are missing, doubled, unreadable, of other dimensions, or on another
            grid than their image.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}.")
    if modality not in ("all", "ct", "mr") or (modality != "all" and layout != "topcow"):
        raise ValueError(
            f"modality must be 'all', or 'ct' or 'mr' with layout 'topcow', got {modality!r} with {layout!r}."
        )
    named = _folder_names(layout, case_folders)
    root = Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir {str(root)!r} is not a folder; set --dataset_dir to the data's folder.")

    cases: list[Case] = []
    problems: list[str] = []
    for found in _folder(root, *named) if layout == "folder" else LAYOUTS[layout](root):
        if isinstance(found, str):
            problems.append(found)
        elif modality == "all" or f"_{modality}_" in found["name"]:
            cases.append(found)
    for case in cases:
        problems.extend(_problems_of(case, spatial_dims))
    if problems:
        shown = "\n  ".join(problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{len(problems)} problem(s) in {str(root)!r}; mend or move these files:\n  {shown}{more}")
    if not cases:
        expected = _EXPECTED[layout].replace("IMAGES", named[0]).replace("LABELS", named[1])
        raise ValueError(f"no case of layout {layout!r} and modality {modality!r} in {str(root)!r}: {expected}")
    return sorted(cases, key=lambda case: case["name"])


def split_cases(
    cases: Sequence[Case],
    fold: int | str,
    folds: int = 5,
    seed: int = 12345,
    group_table: str | None = None,
    data_fraction: float = 1.0,
) -> Split:
    """Hold out one fold of the cases; the same arguments give the same split on every machine and in every version.

    Groups are ordered by a hash of their name and dealt to the folds in turn, so a case that joins later
    moves few others.

    Args:
        cases: from :py:func:`list_cases`.
        fold: which fold is held out, 0 to ``folds - 1``; or ``"all"``: every case is on both sides (a final training
            without held-out cases, or scores of a whole folder).
        folds: number of folds.
        seed: another seed gives another split.
        group_table: CSV with columns ``name`` and ``group``; cases of one group stay together. Cases that it does not
            name keep the group that the layout gave them (the patient, or the case itself).
        data_fraction: share of the groups on the training side that stay there, at least one; the others are on no
            side. A smaller share is a part of a larger one. The held-out side is always whole.

    Raises:
        FileNotFoundError: when ``group_table`` is not a file.
        ValueError: when the fold does not exist, there are fewer groups than folds, the fraction is not above 0 and at
            most 1, or the table's columns or names are wrong.
    """
    if not 0 < data_fraction <= 1:
        raise ValueError(f"data_fraction must be above 0 and at most 1, got {data_fraction}.")
    groups = {case["name"]: case["group"] for case in cases}
    if group_table is not None:
        groups |= _read_groups(group_table, groups)
    ordered = sorted(set(groups.values()), key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    if fold == "all":
        held_out = set(ordered)
        training = ordered
    else:
        if not isinstance(fold, int) or isinstance(fold, bool) or not 0 <= fold < folds:
            raise ValueError(f"fold must be 0 to {folds - 1} (or 'all'), got {fold!r}; --folds sets their number.")
        if len(ordered) < max(folds, 2):
            raise ValueError(
                f"{folds} folds need at least {max(folds, 2)} groups of cases, got {len(ordered)} "
                f"({', '.join(ordered)}); lower --folds, or take --fold all to train and validate on every case."
            )
        held_out = set(ordered[fold::folds])
        training = [group for group in ordered if group not in held_out]
    kept = set(training[: max(1, round(data_fraction * len(training)))])
    return Split(
        [case for case in cases if groups[case["name"]] in kept],
        [case for case in cases if groups[case["name"]] in held_out],
    )


def _read_groups(path: str, known: dict[str, str]) -> dict[str, str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"group_table {path!r} is not a file.")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"name", "group"} <= set(reader.fieldnames or ()):
            raise ValueError(f"group_table {path!r} needs the columns name and group, got {reader.fieldnames}.")
        groups = {row["name"]: row["group"] for row in reader}
    unknown = sorted(set(groups) - set(known))
    if unknown:
        raise ValueError(f"group_table {path!r} names cases that are not there: {', '.join(unknown[:_SHOWN])}.")
    return groups


# --- layouts: each yields cases, and a sentence for each file that does not belong to one ------------------------


def _topcow(root: Path) -> Iterator[Case | str]:
    images = _by_name(_files(root / "imagesTr"), r"(topcow_(?:ct|mr)_\d+)_0000\.nii\.gz")
    labels = _by_name(_files(root / "cow_seg_labelsTr"), r"(topcow_(?:ct|mr)_\d+)\.nii\.gz")
    yield from _pairs(images, labels, lambda name: name.rsplit("_", 1)[1])


def _toothfairy(root: Path) -> Iterator[Case | str]:
    for patient in sorted(path for path in root.iterdir() if path.is_dir()):
        image, label = patient / "data.npy", patient / "gt_alpha.npy"
        if image.is_file() and label.is_file():
            yield {"name": patient.name, "image": str(image), "label": str(label), "group": patient.name}
        elif image.is_file() and (patient / "gt_sparse.npy").is_file():
            continue  # annotated along a curve only: most patients of the published data
        elif image.is_file() or label.is_file():
            missing = label if image.is_file() else image
            yield f"{missing} is missing; expected data.npy and gt_alpha.npy in the folder of each patient."


def _toothfairy2(root: Path) -> Iterator[Case | str]:
    images = _by_name(_files(root / "imagesTr"), r"(.+)_0000\.mha")
    labels = _by_name(_files(root / "labelsTr"), r"(.+)\.mha")
    yield from _pairs(images, labels, lambda name: name)


def _drive(root: Path) -> Iterator[Case | str]:
    root = root / "training" if (root / "training").is_dir() else root
    images = _by_name(_files(root / "images"), r"(\d+)_(?:training|test)\.tif")
    labels = _by_name(_files(root / "1st_manual"), r"(\d+)_manual1\.gif")
    yield from _pairs(images, labels, lambda name: name)


def _roads(root: Path) -> Iterator[Case | str]:
    root = root / "train" if (root / "train").is_dir() else root
    images = _by_name(_files(root / "sat"), r"(.+)\.tiff?")
    labels = _by_name(_files(root / "map"), r"(.+)\.tiff?")
    yield from _pairs(images, labels, lambda name: name)


def _crackforest(root: Path) -> Iterator[Case | str]:
    images = _by_name(_files(root / "image"), r"(\d+)\.jpg")
    labels = _by_name(_files(root / "groundTruth"), r"(\d+)\.mat")
    annotated = {name: files for name, files in images.items() if name in labels}
    yield from _pairs(annotated, labels, lambda name: name)


def _folder(root: Path, images: str = "images", labels: str = "labels") -> Iterator[Case | str]:
    endings = "|".join(map(re.escape, VOLUMES + PICTURES))
    first, second = (_by_name(_files(root / folder), rf"(?i:(.+?)(?:{endings}))") for folder in (images, labels))
    yield from _pairs(first, second, lambda name: name)


def _folder_names(layout: str, case_folders: Sequence[str]) -> tuple[str, str]:
    usual = ("images", "labels")
    names = tuple(case_folders)
    if isinstance(case_folders, str) or len(names) != 2 or (layout != "folder" and names != usual):
        raise ValueError(
            f"case_folders must name the folder of the images and that of the labels, with layout 'folder' only, "
            f"got {case_folders!r} with {layout!r}."
        )
    return names[0], names[1]


LAYOUTS: dict[str, Callable[[Path], Iterator[Case | str]]] = {
    "topcow": _topcow,
    "toothfairy": _toothfairy,
    "toothfairy2": _toothfairy2,
    "drive": _drive,
    "roads": _roads,
    "crackforest": _crackforest,
    "folder": _folder,
}
_EXPECTED = {
    "topcow": "expected imagesTr/topcow_{ct,mr}_NNN_0000.nii.gz with cow_seg_labelsTr/topcow_{ct,mr}_NNN.nii.gz.",
    "toothfairy": "expected a folder for each patient with data.npy and gt_alpha.npy.",
    "toothfairy2": "expected imagesTr/NAME_0000.mha with labelsTr/NAME.mha.",
    "drive": "expected training/images/NN_training.tif with training/1st_manual/NN_manual1.gif.",
    "roads": "expected train/sat/NAME.tiff with train/map/NAME.tif.",
    "crackforest": "expected image/NNN.jpg with groundTruth/NNN.mat.",
    "folder": f"expected IMAGES/NAME and LABELS/NAME ending in one of {' '.join(VOLUMES + PICTURES)}.",
}


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist; check --dataset_dir and --layout.")
    return sorted(path for path in folder.iterdir() if path.is_file())


def _by_name(files: Iterable[Path], pattern: str) -> dict[str, list[Path]]:
    """Files by the name in the pattern's only group; other files (read-me, header's raw data) are left alone."""
    names: dict[str, list[Path]] = {}
    for file in files:
        match = re.fullmatch(pattern, file.name)
        if match:
            names.setdefault(match.group(1), []).append(file)
    return names


def _pairs(
    images: dict[str, list[Path]], labels: dict[str, list[Path]], group: Callable[[str], str]
) -> Iterator[Case | str]:
    for name in sorted(images.keys() | labels.keys()):
        for kind, files in (("image", images.get(name, [])), ("label", labels.get(name, []))):
            if not files:
                there = (images.get(name) or labels[name])[0]
                yield f"{there} has no {kind}: expected one for case {name!r}."
            elif len(files) > 1:
                yield f"case {name!r} has {len(files)} {kind}s ({', '.join(f.name for f in files)}): keep one."
        if len(images.get(name, [])) == 1 and len(labels.get(name, [])) == 1:
            yield {"name": name, "image": str(images[name][0]), "label": str(labels[name][0]), "group": group(name)}


# --- headers -------------------------------------------------------------------------------------------------------


def _problems_of(case: Case, spatial_dims: int) -> Iterator[str]:
    """Sentences about a case that cannot be trained on or scored."""
    grids = {}
    for kind in ("image", "label"):
        try:
            grids[kind] = read_grid(case[kind])
        # each library has its own exceptions for a damaged file; all of them mean the same to the user
        except Exception as error:
            yield f"{case[kind]} cannot be read: {reason_of(error)}"
            return
        shape = grids[kind].shape
        if len(shape) != spatial_dims:
            yield f"{case[kind]} has shape {shape}: expected {spatial_dims} dimensions, one scan in a file."
            return
    image, label = grids["image"], grids["label"]
    if image.shape != label.shape:
        yield f"{case['label']} has shape {label.shape}, its image {case['image']} has {image.shape}: expected one."
        return
    difference = grid_difference(image, label)
    if difference is not None:
        yield f"{case['label']} lies elsewhere than its image {case['image']}: {difference}."
