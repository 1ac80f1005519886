"""All steps that write a folder: one command at a time, so that two do not write over each other."""

from __future__ import annotations

import errno
import os
import platform
from datetime import datetime
from pathlib import Path
from typing import TextIO

from monai.utils import optional_import

from .processes import is_first

__all__ = ["hold_folder"]

fcntl, _has_fcntl = optional_import("fcntl")

_LOCK = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
# closing a file would give its lock away; the system does so when the process ends, however it ends
_held: dict[Path, TextIO] = {}


def hold_folder(folder: str | Path) -> None:
    """Keep every other command from writing a folder until this process ends; of several processes the first one does.

    The lock is that of an open file, ``.lock``, so a command that is killed leaves nothing that would have to be
    removed. A process may hold a folder twice. Where there are no such locks (Windows, some network drives) nothing is
    kept.

    Args:
        folder: is made where it is not there.

    Raises:
        FileExistsError: when another command holds it.
    """
    folder = Path(folder).resolve()
    if not is_first() or folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / _LOCK, "a+", encoding="utf-8")
    try:
        if _has_fcntl:
            # record locks: processes that are forked, such as those that load data, do not hold them too
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            file.seek(0)
            holder = file.read().strip() or "another command"
            file.close()
            raise FileExistsError(
                f"{str(folder)!r} is being written by {holder}; wait until it has ended, or take another --output_dir."
            ) from None
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
    file.truncate(0)
    file.write(f"process {os.getpid()} of {platform.node()}, which began {datetime.now():%Y-%m-%d %H:%M}\n")
    file.flush()
    _held[folder] = file
