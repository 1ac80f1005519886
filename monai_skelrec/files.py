"""Files that are whole or not there, whatever interrupts the writing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

__all__ = ["remove_unfinished", "replace"]


def replace(path: Path, write: Callable[[Path], Any], keep: Path | None = None) -> None:
    """Write beside a file and rename: whoever reads, or whatever kills us, meets the old file or the new one.

    The content is on the disk before it gets its name, so that even a machine that loses power keeps either file.

    Args:
        path: the file that shall hold the new content.
        write: writes to the path that it is given, which lies in the same folder.
        keep: where the old file goes; between two renames it is there and ``path`` is not. None: it is overwritten.
    """
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        write(beside)
        _flush(beside)
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _flush(path.parent)


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed while they wrote ``path`` left beside it.

    Args:
        path: a file that no other process is writing.
    """
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
