"""Files that are whole or not there, whatever interrupts the writing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["replace"]


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside a file and rename: whoever reads, or whatever kills us, meets the old file or the new one.

    Args:
        path: the file that shall hold the new content.
        write: writes to the path that it is given, which lies in the same folder.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write(beside)
    os.replace(beside, path)
