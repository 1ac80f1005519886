"""Repairs and outputs as a user asks for them, by knobs of scans.yaml."""

from __future__ import annotations

import csv
import json

import monai.bundle
import numpy as np
from bundle_data import BUNDLE, CONFIGS
from scan_data import expected, phantom, write_nifti, write_task

from monai_skelrec.label_maps import read_label_map


def infer(tmp_path, **knobs):
    monai.bundle.run(
        run_id="inferring",
        config_file=[str(CONFIGS / "inference.json"), str(tmp_path / "run" / "task.yaml"), str(CONFIGS / "scans.yaml")],
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "out"),
        bundle_root=str(BUNDLE),
        **knobs,
    )
    return tmp_path / "out"


def test_outputs_and_repairs_are_knobs(tmp_path):
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in" / "a.nii.gz", phantom())
    write_task(tmp_path / "run")
    plain = infer(tmp_path)
    assert sorted(path.name for path in plain.iterdir() if path.is_file()) == [".lock", "a.nii.gz", "manifest.json"]
    np.testing.assert_array_equal(read_label_map(plain / "a.nii.gz")[0], expected(phantom()))

    knobs = {"centerlines": ["vtp", "markups", "swc"], "class_table": True, "picture": True}
    out = infer(tmp_path, max_gap=5.0, min_volume=1e6, **knobs)
    for name in ("a.vtp", "a.mrk.json", "a.csv", "pictures/a.png"):
        assert (out / name).stat().st_size > 0, name
    assert list(out.glob("a_01_*.swc"))
    rows = list(csv.DictReader((out / "a.csv").open()))
    (record,) = json.loads((out / "manifest.json").read_text())["scans"]
    # no island is kept but the largest of each class, however small it is
    assert all(int(row["components"]) <= 1 for row in rows)
    assert record["numbers"]["classes"] and record["status"] == "done"
    label, _ = read_label_map(out / "a.nii.gz")
    assert sum(int(row["voxels"]) for row in rows) == np.count_nonzero(label)
