"""scans.yaml as a user starts it: one command for scans of any format, whatever is wrong with some of them."""

from __future__ import annotations

import json

import monai.bundle
import numpy as np
import pytest
from bundle_data import BUNDLE, CONFIGS, ROOT, command
from scan_data import expected, phantom, write_dicom, write_itk, write_nifti, write_task

from monai_skelrec.label_maps import read_label_map

FILES = [str(CONFIGS / "inference.json"), None, str(CONFIGS / "scans.yaml")]


def files_with(task):
    return [str(task) if file is None else file for file in FILES]


def write_ten_scans(folder):
    """Seven good ones in six formats, and three that are broken in different ways."""
    scan = phantom()
    write_nifti(folder / "a.nii", scan)
    write_nifti(folder / "b.nii.gz", scan)
    write_itk(folder / "c.nrrd", scan)
    write_itk(folder / "d.mha", scan)
    write_itk(folder / "e.mhd", scan)
    write_dicom(folder / "f", scan)
    (folder / "deep").mkdir()
    np.save(folder / "deep" / "g.npy", scan)
    whole = (folder / "b.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    spoilt = scan.astype(np.float32)
    spoilt[0, 0, 0] = np.nan
    write_nifti(folder / "nan.nii.gz", spoilt)
    write_nifti(folder / "four.nii.gz", np.stack([scan, scan + 1], axis=-1))
    return folder


def test_ten_scans_of_which_three_are_broken(tmp_path):
    scans, out = write_ten_scans(tmp_path / "in"), tmp_path / "out"
    arguments = ["inferring", "--config_file", str(files_with(write_task(tmp_path / "run")))]
    arguments += ["--dataset_dir", scans, "--output_dir", out]
    first = command(*arguments, cwd=ROOT)
    assert first.returncode == 1
    last = first.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: 3 of 10 scans could not be segmented: cut:")
    assert "NaN" in last and "(2, 14, 11, 9)" in last
    assert "7 label maps written, 0 were up to date, 3 scans failed" in first.stdout
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    assert sorted(written) == [f"{name}.nii.gz" for name in "abcdefg"]
    for name in written:
        np.testing.assert_array_equal(read_label_map(out / name)[0], expected(phantom()))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"] == {"done": 7, "failed": 3}
    assert len(manifest["weights"]["sha256"]) == 64 and manifest["config"]["task"] == "threshold"
    # of a task that knows no range; the phantom has three values
    assert all(
        "a label map or a mask?" in record["warnings"][-1] for record in manifest["scans"] if record["name"] in "ag"
    )
    reasons = {record["name"]: record["reason"] for record in manifest["scans"] if record["status"] == "failed"}
    assert sorted(reasons) == ["cut", "four", "nan"] and len(set(reasons.values())) == 3

    # in this process: what is compared is what it does, and starting another one takes seconds
    with pytest.raises(RuntimeError):
        monai.bundle.run(
            "inferring",
            config_file=files_with(tmp_path / "run" / "task.yaml"),
            dataset_dir=str(scans),
            output_dir=str(out),
            bundle_root=str(BUNDLE),
        )
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")} == written
    again = json.loads((out / "manifest.json").read_text())
    assert again["counts"] == manifest["counts"]
    for one, other in zip(manifest["scans"], again["scans"]):
        assert one == other
