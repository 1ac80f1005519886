"""Step "what was done -> manifest.json": a record of each scan, so that a run that was stopped goes on from there."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .files import remove_unfinished, replace
from .fingerprints import file_state
from .scans import Scan, series_files

__all__ = ["MANIFEST", "Records", "scan_state", "versions", "write_manifest"]

MANIFEST = "manifest.json"

_FOLDER = ".scans"
_PACKAGES = ("monai_skelrec", "monai", "torch", "numpy", "scipy", "scikit-image", "nibabel", "itk", "pillow")


class Records:
    """What is known of each scan, a small file each, so that processes that share a folder do not wait for each other.

    Args:
        output_dir: folder of the label maps; records are in a hidden folder within.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir) / _FOLDER

    def path(self, name: str) -> Path:
        """
        Args:
            name: of a scan.
        """
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any]:
        """The record of a scan; empty where there is none.

        Args:
            name: of the scan.
        """
        try:
            content = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # never begun, or a disk that lost its end: it is segmented again
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Replace the record of a scan.

        Args:
            name: of the scan.
            record: what JSON knows.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.path(name))
        _write_json(self.path(name), record)


def scan_state(scan: Scan) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of a scan: another content has another state, another folder has not.

    Args:
        scan: a file, or a series of files; those that are not there are left out.
    """
    files = [scan.path] if scan.series is None else series_files(scan.path).get(scan.series, [])
    found = [each for file in files for each in file_state(file) or ()]
    return [(Path(path).name, size, time) for path, size, time in found]


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a label map depends on; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def write_manifest(output_dir: str | Path, about: Mapping[str, Any], scans: Sequence[Mapping[str, Any]]) -> None:
    """Write ``manifest.json``: what ran, on what, and what became of each scan.

    Args:
        output_dir: folder of the label maps.
        about: of the run: versions, weights, configuration, times.
        scans: one record each.
    """
    counts: dict[str, int] = {}
    for record in scans:
        counts[str(record["status"])] = counts.get(str(record["status"]), 0) + 1
    path = Path(output_dir) / MANIFEST
    remove_unfinished(path)
    _write_json(path, {**about, "counts": counts, "scans": list(scans)})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, default=str, ensure_ascii=False)
    replace(path, lambda beside: beside.write_text(text + "\n", encoding="utf-8"))
