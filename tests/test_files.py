"""A file is the old one or the new one, never half of either."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from monai_skelrec.files import remove_unfinished, replace


def test_new_content_replaces_old_and_the_old_may_be_kept(tmp_path):
    path, kept = tmp_path / "last.pt", tmp_path / "previous.pt"
    for content in ("one", "two", "three"):
        replace(path, lambda beside, content=content: beside.write_text(content), keep=kept)
    assert (path.read_text(), kept.read_text()) == ("three", "two")
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "last.pt"
    path.write_text("old")

    def fail(beside):
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["last.pt"]


def die_half_way(path):
    def write(beside):
        beside.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    replace(path, write)


def test_kill_while_writing_leaves_the_old_file_and_the_half_one_is_removed(tmp_path):
    path = tmp_path / "last.pt"
    path.write_text("old")
    process = multiprocessing.get_context("fork").Process(target=die_half_way, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    remove_unfinished(path)
    assert os.listdir(tmp_path) == ["last.pt"]


def test_what_is_written_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda opened: (calls.append("flush"), flush(opened)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), rename(*paths)))
    replace(tmp_path / "a", lambda beside: beside.write_text("a"))
    assert calls == ["flush", "rename", "flush"]  # the file, its name, the folder that holds the name
