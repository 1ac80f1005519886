"""Step "whatever holds scans -> list of scans": a folder, a file, a list, a datalist; DICOM series among them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.utils import optional_import

from .grids import PICTURES, VOLUMES, ending

__all__ = ["Scan", "find_scans", "series_files"]

itk, _ = optional_import("itk")

_DICOM = (".dcm", ".ima", ".dicom")
_ENDINGS = (*VOLUMES, ".nhdr", *PICTURES)
# sections of a datalist that hold scans without labels
_SECTIONS = ("testing", "test", "validation", "training")


class Scan(NamedTuple):
    """One scan to segment.

    Attributes:
        name: of its label map, without ending; each scan of a list has another.
        path: file, or folder of a DICOM series.
        series: which DICOM series of the folder, as ITK names it; None for files.
        problem: why it cannot be segmented, a sentence; None if nothing is known against it.
    """

    name: str
    path: str
    series: str | None = None
    problem: str | None = None


def find_scans(
    source: str | Path | Sequence[Any],
    pattern: str | None = None,
    *,
    series: str = "one",
    exclude: str | Path | None = None,
) -> list[Scan]:
    """List the scans that a user means.

    Args:
        source: a file; a folder, searched with all folders in it; a datalist (JSON: a list, or lists under "testing" or
            "validation"; paths are relative to its folder); or a list of any of these, or of dictionaries with the
            path as "image".
        pattern: regular expression of the task; its first group names the label map. Files in other formats than the
            pattern's are found too; a file that it leaves out beside one of the same format that it takes is no scan.
        series: of a DICOM folder with several: "one" refuses it and lists them, "all" takes each, anything else is the
            UID (or its beginning) of the one to take.
        exclude: a folder that is not searched, such as that of the label maps.

    Returns:
        Scans, sorted by name. One that cannot be what it should be has a ``problem``. Names that would be the same are
        told apart by the folders above, then by the format.

    Raises:
        FileNotFoundError: when ``source`` does not exist or holds no scan.
        ValueError: when a datalist is none.
    """
    found = list(_found(source, pattern, series, None if exclude is None else Path(exclude).resolve()))
    unique = list(dict.fromkeys(found))
    if not unique:
        raise FileNotFoundError(
            f"{_shown(source)} holds no scan: expected a DICOM series or a name that ends in {', '.join(_ENDINGS)}."
        )
    return sorted(_told_apart(unique))


def _shown(source: Any) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else "the list of scans"


def _found(source: Any, pattern: str | None, series: str, exclude: Path | None) -> Iterator[Scan]:
    if isinstance(source, dict):
        if "image" not in source:
            raise ValueError(f"an entry of a datalist needs the key 'image', got {sorted(map(str, source))}.")
        source = source["image"]
        if isinstance(source, (list, tuple)) and len(source) == 1:
            source = source[0]
        if not isinstance(source, (str, Path)):
            raise ValueError(f"'image' of a datalist's entry must be one path, got {source!r}.")
    if not isinstance(source, (str, Path)):
        for each in source:
            yield from _found(each, pattern, series, exclude)
        return
    path = Path(source)
    if path.is_dir():
        for folder, folders, files in os.walk(path, followlinks=True):
            here = Path(folder)
            # hidden ones hold what programs keep, not what people do
            folders[:] = sorted(each for each in folders if each[0] != "." and (here / each).resolve() != exclude)
            yield from _in_folder(here, sorted(each for each in files if each[0] != "."), pattern, series)
    elif path.suffix.lower() == ".json":
        yield from _found(_datalist(path), pattern, series, exclude)
    elif path.is_file() and _is_dicom(path):
        yield Scan(_name(path, pattern), str(path))
    elif path.is_file() and ending(path):
        yield Scan(_name(path, pattern), str(path))
    else:
        problem = "there is no such file" if not path.exists() else f"its format is not known; expected {_ENDINGS}"
        yield Scan(_name(path, pattern), str(path), None, problem)


def _in_folder(folder: Path, names: list[str], pattern: str | None, series: str) -> Iterator[Scan]:
    """Scans of one folder, without the folders in it."""
    paths = [folder / name for name in names]
    files = [path for path in paths if ending(path)]
    taken = {path for path in files if pattern and re.search(pattern, str(path))}
    formats = {ending(path) for path in taken}
    for path in files:
        if path in taken or ending(path) not in formats:
            yield Scan(_name(path, pattern), str(path))
    slices = [path for path in paths if not ending(path) and _is_dicom(path)]
    if slices:
        yield from _dicom_series(folder, series)


def _is_dicom(path: Path) -> bool:
    """By its ending, or without one by the letters that the format begins with."""
    if path.suffix.lower() in _DICOM:
        return True
    # exports name slices by numbers and UIDs, which have dots
    if not re.fullmatch(r"\.?\w{0,8}\d[\d.]*|", path.suffix) or path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def series_files(folder: str | Path) -> dict[str, list[str]]:
    """The DICOM series of one folder: for each, as ITK names it, its files in the order of the slices.

    Args:
        folder: without the folders in it.
    """
    # as MONAI's ITKReader lists them, which reads the one that is chosen
    generator = itk.GDCMSeriesFileNames.New()
    generator.SetUseSeriesDetails(True)
    generator.AddSeriesRestriction("0008|0021")
    generator.SetDirectory(str(folder))
    return {uid: list(generator.GetFileNames(uid)) for uid in generator.GetSeriesUIDs()}


def _dicom_series(folder: Path, series: str) -> Iterator[Scan]:
    files = series_files(folder)
    found = list(files)
    name = folder.resolve().name
    if not found:
        yield Scan(name, str(folder), None, "its DICOM files hold no image series that can be read")
        return
    chosen = found if series == "all" else [uid for uid in found if series != "one" and uid.startswith(series)]
    if len(found) == 1 and series == "one":
        yield Scan(name, str(folder), found[0])
    elif chosen:
        for uid in chosen:
            several = len(chosen) > 1
            yield Scan(f"{name}_series{found.index(uid) + 1}" if several else name, str(folder), uid)
    else:
        listed = "; ".join(f"{uid} ({len(files[uid])} files)" for uid in found)
        problem = (
            f"it holds {len(found)} DICOM series: {listed}; set series to 'all' or to the beginning of one of these"
            if series == "one"
            else f"none of its DICOM series begins with {series!r}: {listed}"
        )
        yield Scan(name, str(folder), None, problem)


def _datalist(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"datalist {str(path)!r} does not exist.") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"datalist {str(path)!r} cannot be read: {error}.") from error
    if isinstance(content, dict):
        section = next((content[name] for name in _SECTIONS if content.get(name)), None)
        if section is None:
            raise ValueError(f"datalist {str(path)!r} needs one of the lists {', '.join(_SECTIONS)}.")
        content = section
    if not isinstance(content, list):
        raise ValueError(f"datalist {str(path)!r} must be a list or hold one, got {type(content).__name__}.")
    entries = [each["image"] if isinstance(each, dict) and "image" in each else each for each in content]
    entries = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in entries]
    return [str(path.parent / each) if isinstance(each, str) else each for each in entries]


def _name(path: Path, pattern: str | None) -> str:
    """What the task's pattern calls a file, whatever its format; else its name without ending."""
    stem = str(path)[: -len(ending(path))] if ending(path) else str(path)
    for each in ("", *_ENDINGS) if pattern else ():
        matched = re.search(str(pattern), f"{stem}{each}" if each else str(path))
        if matched:
            return matched.group(1)
    return Path(stem).name


def _told_apart(scans: list[Scan]) -> list[Scan]:
    """Lengthen names that several scans have: by one folder above after the other, then by the format."""
    parts = {scan: Path(scan.path).absolute().parent.parts[1:] for scan in scans}
    names = {scan: scan.name for scan in scans}
    for depth in range(1, 1 + max(len(each) for each in parts.values())):
        before = dict(names)
        doubled = _doubled(before)
        for scan in doubled:
            # of two files in one folder the folder says nothing
            rivals = [other for other in doubled if before[other] == before[scan]]
            if len({parts[other] for other in rivals}) > 1 and len(parts[scan]) >= depth:
                names[scan] = f"{parts[scan][-depth]}_{names[scan]}"
    for scan in _doubled(names):
        names[scan] += f"_{ending(scan.path).lstrip('.').replace('.', '_')}"
    return [scan._replace(name=name) for scan, name in names.items()]


def _doubled(names: dict[Scan, str]) -> list[Scan]:
    # case decides nothing on the file systems of two of three operating systems
    lower = [name.lower() for name in names.values()]
    return [scan for scan, name in names.items() if lower.count(name.lower()) > 1]
