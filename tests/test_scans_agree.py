"""inference.json alone, and with scans.yaml over it, give the same label maps: volumes, pictures and ensembles."""

from __future__ import annotations

import json

import monai.bundle
import numpy as np
import pytest
import torch
import yaml
from bundle_data import BUNDLE, CONFIGS, SMALL_NETWORK, SMALL_NETWORK_2D, files_of, overlay, write_data
from monai.bundle import ConfigParser

from monai_skelrec.ensembles import write_ensemble
from monai_skelrec.grids import grid_difference, read_grid
from monai_skelrec.label_maps import read_label_map
from monai_skelrec.pairs import match_label_maps
from monai_skelrec.workflows import FACTS

# classes within rounding of each other may change places: windows come in other batches, and Invertd is in double
SAME = 1e-4


def save_run(folder, task, seed, **facts):
    """A run of the bundle's own network with random weights: model.pt and task.yaml."""
    folder.mkdir(parents=True)
    configs = ConfigParser.load_config_files(files_of("inference.json", *overlay(task))) | facts
    parser = ConfigParser(configs)
    torch.manual_seed(seed)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    content = {name: configs[name] for name in (*FACTS, "network_def")} | {"checkpoint": str(folder / "model.pt")}
    (folder / "task.yaml").write_text(yaml.safe_dump(content))
    return folder


def infer(run, scans, out, *files, **knobs):
    monai.bundle.run(
        run_id="inferring",
        config_file=[str(CONFIGS / "inference.json"), str(run / "task.yaml"), *(str(CONFIGS / each) for each in files)],
        dataset_dir=str(scans),
        output_dir=str(out),
        bundle_root=str(BUNDLE),
        sw_batch_size=1,
        **knobs,
    )
    return {path.name: path for path in out.iterdir() if path.is_file() and path.name not in ("manifest.json", ".lock")}


def require_same(one, other):
    """Label maps by name: one grid, several classes, no more than a tiny share of voxels of another class."""
    assert sorted(one) == sorted(other) and one
    for name in one:
        assert grid_difference(read_grid(str(one[name])), read_grid(str(other[name]))) is None
        first, second = (read_label_map(each[name])[0] for each in (one, other))
        assert first.dtype == second.dtype and len(np.unique(first)) > 1
        assert (first != second).mean() < SAME, name


def test_volumes_with_and_without_a_bound_and_by_an_ensemble(tmp_path):
    scans = write_data("topcow", tmp_path / "data", count=2) / "imagesTr"
    facts = SMALL_NETWORK | {"spacing": [1.0, 1.0, 1.0], "patch_size": [16, 16, 16]}
    runs = [save_run(tmp_path / f"run{seed}", "topcow", seed, **facts) for seed in (0, 1)]
    alone = infer(runs[0], scans, tmp_path / "alone")
    streamed = infer(runs[0], scans, tmp_path / "streamed", "scans.yaml")
    require_same(alone, streamed)

    bounded = infer(runs[0], scans, tmp_path / "bounded", "scans.yaml", max_memory_gb=0.0015)
    require_same(streamed, bounded)
    records = json.loads((tmp_path / "bounded" / "manifest.json").read_text())["scans"]
    assert all(record["plan"]["tiles"] > 1 and record["plan"]["memory_gb"] <= 0.0015 for record in records)
    assert all(record["warnings"] == [] for record in records)

    write_ensemble([str(run) for run in runs], str(tmp_path / "ensemble"))
    together = infer(tmp_path / "ensemble", scans, tmp_path / "together", "scans.yaml")
    require_same(infer(tmp_path / "ensemble", scans, tmp_path / "together alone"), together)
    with pytest.raises(AssertionError):  # the second member has a vote
        require_same(together, streamed)


def test_pictures(tmp_path):
    scans = write_data("folder_2d", tmp_path / "data", count=2) / "images"
    run = save_run(tmp_path / "run", "folder_2d", 0, **SMALL_NETWORK_2D | {"patch_size": [16, 16]})
    alone = infer(run, scans, tmp_path / "alone")
    assert sorted(alone) == ["1.png", "2.png"]
    streamed = infer(run, scans, tmp_path / "streamed", "scans.yaml", picture=True)
    require_same(alone, streamed)
    # PNG like the label maps, in a folder of their own: whoever scores the label maps meets nothing else
    assert sorted(path.name for path in (tmp_path / "streamed" / "pictures").iterdir()) == ["1.png", "2.png"]
    cases, missing = match_label_maps(tmp_path / "streamed", tmp_path / "alone")
    assert [case["name"] for case in cases] == ["1", "2"] and not missing
