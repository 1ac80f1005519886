"""All steps that write a folder: one command at a time, so that two do not write over each other."""

from __future__ import annotations

import errno
import logging
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
# closing a file would give its lock away; the system does so when the process ends, however it ends
_held: dict[Path, TextIO] = {}


def hold_folder(folder: str | Path) -> None:
    """Keep every other command from writing a folder until this process ends; of several processes the first one does.

    The lock is that of an open file, ``.lock``, so a command that is killed leaves nothing that would have to be
    removed. A process may hold a folder twice; a notebook holds it until its kernel is restarted. Where there are no
    such locks (Windows, some network drives) nothing is kept. Whoever opens and closes ``.lock`` in this process, as a
    copy of the folder does, gives the lock away.

    Args:
        folder: is made where it is not there.

    Raises:
        FileExistsError: when another command holds it.
        OSError: when it cannot be written.
    """
    folder = Path(folder).resolve()
    if not is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not _has_fcntl or _holds(folder):
        return
    file = _opened(folder / _LOCK)
    try:
        # record locks: processes that are forked, such as those that load data, do not hold them too
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.seek(0)
            holder = file.read().strip() or "another command"
            file.close()
            raise FileExistsError(
                f"{str(folder)!r} is being written by {holder}; wait until it has ended, or take another --output_dir."
            ) from None
        logging.getLogger(__name__).warning(f"{str(folder)!r} cannot be locked ({error.strerror}): start one command.")
    file.truncate(0)
    file.write(f"process {os.getpid()} of {platform.node()}, which began {datetime.now():%Y-%m-%d %H:%M}\n")
    file.flush()
    _held[folder] = file


def _holds(folder: Path) -> bool:
    """Whether this process holds the folder, and not one of its name that was removed."""
    file, path = _held.get(folder), folder / _LOCK
    if file is None:
        return False
    if path.is_file() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
        return True
    _held.pop(folder).close()
    return False


def _opened(path: Path) -> TextIO:
    try:
        # for everybody who may write the folder
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), "a+", encoding="utf-8")
    except OSError as error:
        raise OSError(
            error.errno, f"output_dir {str(path.parent)!r} cannot be written ({error.strerror}: {path}); take another."
        ) from None
