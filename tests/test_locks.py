"""Two commands and one folder: the second one is refused, and a killed one leaves nothing behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import time

import pytest

from monai_skelrec import locks
from monai_skelrec.locks import hold_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs locks of POSIX")


def hold(folder, ready, fork):
    hold_folder(folder)
    if fork and os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    ready.set()
    time.sleep(60)


def start(folder, fork=False):
    """Another process, which holds the folder."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(folder, ready, fork))
    process.start()
    assert ready.wait(60)
    return process


@pytest.fixture
def other(tmp_path):
    process = start(tmp_path / "run")
    yield process
    process.kill()
    process.join()


def test_folder_of_another_command_is_refused_until_it_is_killed(tmp_path, other):
    with pytest.raises(FileExistsError, match=f"run' is being written by process {other.pid} of .*; wait until it has"):
        hold_folder(tmp_path / "run")
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    hold_folder(tmp_path / "run")
    assert f"process {os.getpid()} of" in (tmp_path / "run" / ".lock").read_text()


def test_other_folders_are_free_and_one_may_be_held_twice(tmp_path, other):
    hold_folder(tmp_path / "new" / "folder")
    hold_folder(str(tmp_path / "new" / "folder"))
    assert (tmp_path / "new" / "folder" / ".lock").is_file()


def test_a_process_that_was_forked_keeps_no_lock(tmp_path):
    """Processes that load data outlive a training that was killed by a moment."""
    process = start(tmp_path / "run", fork=True)
    process.kill()
    process.join()
    hold_folder(tmp_path / "run")


def test_folder_that_was_removed_is_made_and_held_anew(tmp_path):
    run = tmp_path / "run"
    hold_folder(run)
    shutil.rmtree(run)
    hold_folder(run)
    assert (run / ".lock").is_file()
    process = multiprocessing.get_context("spawn").Process(target=hold_folder, args=(run,))
    process.start()
    process.join()
    assert process.exitcode == 1


def test_drive_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    hold_folder(tmp_path / "run")
    assert "cannot be locked (Function not implemented): start one command" in caplog.text


def test_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(OSError, match="output_dir '.*run' cannot be written .*; take another"):
        hold_folder(tmp_path / "run")
