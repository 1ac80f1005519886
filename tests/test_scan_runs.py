"""A folder of scans: each once, whatever becomes of the others, the disk or the run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scan_data import LABEL_VALUES, expected, phantom, threshold_network, write_itk, write_nifti

from monai_skelrec import scan_runs
from monai_skelrec.memory_plans import Plan
from monai_skelrec.reading import read_scan
from monai_skelrec.scan_runs import require_all_segmented, segment_scans
from monai_skelrec.scans import Scan, find_scans
from monai_skelrec.segmenting import Segmenter
from monai_skelrec.streaming import Windows


def run(source, out, **options):
    segmenter = Segmenter(threshold_network(), Windows((8, 8, 8)), 3)
    options = {"read": read_scan, "label_values": LABEL_VALUES, "output_ext": ".nii.gz", **options}
    return segment_scans(find_scans(source, exclude=out), segmenter, output_dir=out, **options)


def state(out):
    return {path.name: path.stat().st_mtime_ns for path in sorted(out.iterdir()) if path.is_file()}


def new(records):
    return [record["name"] for record in records if record["new"]]


@pytest.fixture
def scans(tmp_path):
    for name in "ab":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", phantom())
    return tmp_path / "in"


def test_rerun_does_what_is_missing_or_changed_and_nothing_else(scans, tmp_path):
    out = tmp_path / "out"
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")
    options = {"checkpoint": tmp_path / "w.pt", "options": {"overlap": 0.5}}
    assert new(run(scans, out, **options)) == ["a", "b"]
    assert new(run(scans, out, **options)) == []
    (out / "a.nii.gz").unlink()
    assert new(run(scans, out, **options)) == ["a"]
    (out / "b.nii.gz").write_bytes(b"damaged")
    assert new(run(scans, out, **options)) == ["b"]
    write_nifti(scans / "b.nii.gz", phantom() + 1)
    assert new(run(scans, out, **options)) == ["b"]
    write_nifti(scans / "c.nii.gz", phantom())
    assert new(run(scans, out, **options)) == ["c"]
    assert new(run(scans, out, **{**options, "options": {"overlap": 0.25}})) == ["a", "b", "c"]
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    assert new(run(scans, out, **{**options, "options": {"overlap": 0.25}})) == ["a", "b", "c"]


def test_a_refused_scan_is_read_again_when_its_file_changed_only(scans, tmp_path):
    write_nifti(scans / "b.nii.gz", np.full((9, 9, 9), 4, np.int16))
    records = run(scans, tmp_path / "out")
    assert [record["status"] for record in records] == ["done", "failed"]
    with pytest.raises(ValueError, match="1 of 2 scans could not be segmented: b: .* is constant: every voxel is 4."):
        require_all_segmented(records)
    again = run(scans, tmp_path / "out")
    assert new(again) == [] and again[1]["reason"] == records[1]["reason"]
    write_nifti(scans / "b.nii.gz", phantom())
    assert new(run(scans, tmp_path / "out")) == ["b"]


def test_lack_of_memory_is_said_and_tried_again(scans, tmp_path):
    def hungry(scan):
        if scan.name == "a":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.")
        return read_scan(scan)

    records = run(scans, tmp_path / "out", read=hungry)
    assert records[0]["reason"].startswith("there was not enough memory") and records[1]["status"] == "done"
    assert new(run(scans, tmp_path / "out")) == ["a"]


def test_corrections_come_before_the_label_map_and_outputs_after(scans, tmp_path):
    seen = []

    def correct(*, labels, affine, probabilities):
        assert probabilities.shape == (3, *labels.shape) and probabilities.dtype == np.float16
        np.testing.assert_allclose(probabilities.astype(float).sum(0), 1, atol=2e-3)
        return np.where(labels == 2, 0, labels).astype(labels.dtype)

    def output(*, name, labels, affine, probabilities, output_dir, load):
        seen.append((name, labels.max(), (output_dir / f"{name}.nii.gz").is_file(), tuple(load().image.shape)))
        return {"voxels": int((labels == 1).sum())}

    records = run(scans, tmp_path / "out", probabilities=True, corrections=[correct], outputs=[output])
    assert seen == [("a", 1, True, (1, 14, 11, 9)), ("b", 1, True, (1, 14, 11, 9))]
    assert records[0]["numbers"] == {"voxels": int((phantom() == 100).sum())}
    written = np.asarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj)
    assert set(np.unique(written)) == {0, 3}
    assert not list((tmp_path / "out").glob(".probabilities*"))


def test_same_format_is_that_of_the_scan(scans, tmp_path):
    write_itk(scans / "c.nrrd", phantom())
    run(scans, tmp_path / "out", same_format=True, output_ext=".mha")
    assert sorted(path.name for path in (tmp_path / "out").glob("[abc].*")) == ["a.nii.gz", "b.nii.gz", "c.nrrd"]


def test_a_scan_is_never_overwritten(scans):
    before = (scans / "a.nii.gz").read_bytes()
    segmenter = Segmenter(threshold_network(), Windows((8, 8, 8)), 3)
    options = {"label_values": LABEL_VALUES, "output_ext": ".nii.gz"}
    records = segment_scans(find_scans(scans), segmenter, read_scan, scans, **options)
    assert "would overwrite the scan" in records[0]["reason"] and (scans / "a.nii.gz").read_bytes() == before


def test_label_map_of_another_scan_of_that_name_is_kept(scans, tmp_path):
    run(scans, tmp_path / "out")
    write_nifti(tmp_path / "other" / "a.nii.gz", phantom() * 2)
    before = state(tmp_path / "out")["a.nii.gz"]
    (record,) = run(tmp_path / "other", tmp_path / "out")
    assert "is the label map of another scan" in record["reason"]
    assert state(tmp_path / "out")["a.nii.gz"] == before


def test_an_output_may_not_take_the_label_maps_place(scans, tmp_path):
    def output(*, name, output_dir, **_):
        (output_dir / f"{name}.nii.gz").write_text("a picture")
        return {}

    records = run(scans, tmp_path / "out", outputs=[output])
    assert "wrote over the label map" in records[0]["reason"]


def test_full_disk_ends_the_run_and_keeps_what_is_done(scans, tmp_path, monkeypatch):
    write = scan_runs.write_label_map

    def full_after_one(path, *arguments):
        if Path(path).name == "b.nii.gz":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(scan_runs, "write_label_map", full_after_one)
    with pytest.raises(OSError, match="No space left"):
        run(scans, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [record["status"] for record in manifest["scans"]] == ["done", "begun"]
    monkeypatch.undo()
    assert new(run(scans, tmp_path / "out")) == ["b"]


def test_folder_that_cannot_be_written_is_found_out_before_the_first_scan(scans, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="output_dir .* cannot be written"):
        run(scans, tmp_path / "file" / "out", read=lambda scan: pytest.fail("a scan was read"))


def test_interrupted_run_says_so_and_goes_on(scans, tmp_path):
    def interrupted(scan):
        if scan.name == "b":
            raise KeyboardInterrupt
        return read_scan(scan)

    with pytest.raises(KeyboardInterrupt):
        run(scans, tmp_path / "out", read=interrupted)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [record["reason"] for record in manifest["scans"]] == [None, "the run was stopped"]
    assert new(run(scans, tmp_path / "out")) == ["b"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_scan_runs import run
import monai_skelrec.label_files as label_files

def killed(named, *_, **__):
    named = str(named)
    open(named, "wb").write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

label_files.nibabel.save = lambda image, to: killed(to)
run({scans!r}, {out!r})
"""


def test_kill_while_writing_leaves_no_half_label_map_and_that_scan_comes_last(scans, tmp_path):
    out = tmp_path / "out"
    code = KILLED.format(tests=str(Path(__file__).parent), scans=str(scans), out=str(out))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir() if path.name[0] != "."] == []
    order = []

    def noting(scan):
        order.append(scan.name)
        return read_scan(scan)

    run(scans, out, read=noting)
    assert order == ["b", "a"]  # the scan that may have killed the run does not keep others waiting
    np.testing.assert_array_equal(np.asarray(nibabel.load(out / "a.nii.gz").dataobj), expected(phantom()))
    assert sorted(path.name for path in out.iterdir()) == [".lock", ".scans", "a.nii.gz", "b.nii.gz", "manifest.json"]


def test_plan_and_warnings_are_in_the_manifest(scans, tmp_path):
    write_nifti(scans / "b.nii.gz", (phantom() > 0).astype(np.int16))
    run(scans, tmp_path / "out")
    first, second = json.loads((tmp_path / "out" / "manifest.json").read_text())["scans"]
    assert set(first["plan"]) == set(Plan._fields) and first["warnings"] == []
    assert second["warnings"] == ["nothing was found in it: the label map is background only"]


def test_missing_file_of_a_list_is_one_reason_among_label_maps(scans, tmp_path):
    records = run([str(scans / "a.nii.gz"), str(scans / "gone.nii.gz")], tmp_path / "out")
    assert [record["status"] for record in records] == ["done", "failed"]
    assert records[1]["reason"].endswith("gone.nii.gz: there is no such file.")
    assert find_scans([str(scans / "gone.nii.gz")])[0] == Scan(
        "gone", str(scans / "gone.nii.gz"), None, "there is no such file"
    )
