"""A folder of scans shared by two processes under torchrun: each scan once, also after one of them was killed."""

from __future__ import annotations

import json

import monai.bundle
import numpy as np
import pytest
from bundle_data import BUNDLE, CONFIGS, two_processes
from scan_data import expected, phantom, write_nifti, write_task

from monai_skelrec.label_maps import read_label_map

COUNT = 8  # the process that is killed at its second scan has two more, so that both have one in the next run


def marked(number):
    """A scan that its largest value names."""
    scan = phantom()
    scan[0, 0, 0] = 1000 + number
    return scan


def records_of(out):
    records = (json.loads(path.read_text()) for path in (out / ".scans").glob("*.json"))
    return {record["name"]: record for record in records}


def notes_of(folder):
    """For each process the scans that it segmented; the notes are cleared."""
    notes = {}
    for path in folder.glob("process_*.txt"):
        notes[int(path.stem[-1])] = [f"scan{int(line) - 1000}" for line in path.read_text().split()]
        path.unlink()
    return notes


def test_two_processes_segment_each_scan_once_and_go_on_after_one_was_killed(tmp_path):
    scans, out, notes = tmp_path / "in", tmp_path / "out", tmp_path / "notes"
    notes.mkdir()
    for number in range(COUNT):
        write_nifti(scans / f"scan{number}.nii", marked(number))
    write_nifti(scans / "constant.nii", np.full((9, 9, 9), 4, np.int16))
    intensity = {"_target_": "scan_data.NoteScan", "keys": "image", "folder": str(notes), "kill": 1003}
    task = write_task(tmp_path / "run", intensity=intensity)
    files = [str(CONFIGS / "inference.json"), str(task), str(CONFIGS / "scans.yaml")]
    knobs = {"dataset_dir": scans, "output_dir": out}

    killed = two_processes("inferring", files, **knobs)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    before, noted = records_of(out), notes_of(notes)
    assert before["scan3"]["status"] == "begun" and before["scan3"]["process"] in (0, 1)
    assert sum(noted.values(), []).count("scan3") == 1
    done = {name for name, record in before.items() if record["status"] == "done"}

    second = two_processes("inferring", files, **knobs)
    assert second.returncode != 0
    summary = second.stderr[second.stderr.rindex("Root Cause") :]
    assert "1 of 9 scans could not be segmented: constant: " in summary and "rank      : 0" in summary
    assert second.stdout.count("scans failed") == 1
    assert f"{COUNT - len(done)} label maps written, {len(done)} were up to date, 1 scans failed" in second.stdout
    noted = notes_of(notes)
    assert sorted(sum(noted.values(), [])) == sorted({f"scan{number}" for number in range(COUNT)} - done)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"] == {"done": COUNT, "failed": 1}
    assert {record["name"]: record["process"] for record in manifest["scans"]} == {
        name: record["process"] for name, record in records_of(out).items()
    }
    again = [record for record in manifest["scans"] if record["name"] in sum(noted.values(), [])]
    assert {record["process"] for record in again} == {0, 1}
    assert all(record["name"] in noted[record["process"]] for record in again)
    names = sorted(path.name for path in out.iterdir() if path.is_file())
    assert names == [".lock", "manifest.json", *(f"scan{number}.nii.gz" for number in range(COUNT))]
    for number in range(COUNT):
        np.testing.assert_array_equal(read_label_map(out / f"scan{number}.nii.gz")[0], expected(marked(number)))

    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    with pytest.raises(RuntimeError):  # of the scan that is still constant
        monai.bundle.run(
            "inferring", config_file=files, dataset_dir=str(scans), output_dir=str(out), bundle_root=str(BUNDLE)
        )
    assert notes_of(notes) == {} and {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")} == written
    assert json.loads((out / "manifest.json").read_text())["scans"] == manifest["scans"]
