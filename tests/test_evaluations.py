"""An evaluation takes up what the same model has segmented, and never mixes it with another's label maps."""

from __future__ import annotations

import json
import os

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from bundle_data import run_of
from monai.bundle import ConfigParser

from monai_skelrec import evaluations
from monai_skelrec.evaluations import cases_to_predict


def evaluate(root, out, **changes):
    monai.bundle.run(
        run_id="evaluating",
        config_file=run_of(root, "evaluate.yaml"),
        dataset_dir=str(root / "data"),
        output_dir=str(out),
        pictures=0,
        **changes,
    )


def cause(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def test_evaluation_goes_on_with_its_own_label_maps_only(trained, tmp_path):
    root, out = trained("folder"), tmp_path / "out"
    evaluate(root, out)
    first, second = sorted((out / "predictions").iterdir())
    before, scores = [path.stat().st_mtime_ns for path in (first, second)], (out / "scores.csv").read_text()
    # one is as a kill left it
    second.write_bytes(second.read_bytes()[:-50])
    evaluate(root, out)
    assert first.stat().st_mtime_ns == before[0] and second.stat().st_mtime_ns > before[1]
    assert (out / "scores.csv").read_text() == scores
    with pytest.raises(Exception) as caught:
        evaluate(root, out, overlap=0.25)
    assert "holds label maps that were made with other overlap, which would be scored with the new ones" in cause(
        caught.value
    )
    (out / "predicted_by.json").unlink()
    with pytest.raises(Exception) as caught:
        evaluate(root, out)
    assert "holds label maps of unknown origin" in cause(caught.value)


def test_mirror_images_are_averaged_on_demand_and_never_mixed_with_others(trained, tmp_path):
    root = trained("folder")
    parser = ConfigParser()
    parser.read_config(run_of(root, "evaluate.yaml"))
    for mirror, axes in ((False, ()), (True, (0, 1, 2))):
        parser["mirror"] = mirror
        assert parser.get_parsed_content("inferer").inferer.mirror_axes == axes
    for mirror in (False, True):
        evaluate(root, tmp_path / str(mirror), mirror=mirror)
    for name in os.listdir(tmp_path / "True" / "predictions"):
        plain, mirrored = (nib.load(tmp_path / str(way) / "predictions" / name) for way in (False, True))
        assert (plain.get_fdata() != mirrored.get_fdata()).any()
    with pytest.raises(Exception) as caught:
        evaluate(root, tmp_path / "False", mirror=True)
    assert "holds label maps that were made with other mirror" in cause(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluations, "running_config", lambda: {"spacing": [1, 1, 1], "pictures": 3})
    (tmp_path / "model.pt").write_bytes(b"weights")
    for name in "ab":
        np.save(tmp_path / f"{name}_scan.npy", np.zeros((3, 3)))
    (tmp_path / "out" / "predictions").mkdir(parents=True)
    return tmp_path


def left(folder):
    cases = [{"name": name, "image": str(folder / f"{name}_scan.npy")} for name in "ab"]
    arguments = folder / "out" / "predictions", ".npy", folder / "model.pt"
    return [case["name"] for case in cases_to_predict(cases, *arguments)]


def test_only_whole_label_maps_newer_than_their_scan_count(folder):
    assert left(folder) == ["a", "b"]
    for name in "ab":
        np.save(folder / "out" / "predictions" / f"{name}.npy", np.zeros((3, 3), int))
    assert left(folder) == []
    os.utime(folder / "a_scan.npy", ns=(2**61, 2**61))
    (folder / "out" / "predictions" / "b.npy").write_bytes(b"half")
    assert left(folder) == ["a", "b"]


def test_other_weights_and_settings_are_refused_and_other_knobs_are_not(folder, monkeypatch):
    left(folder)
    np.save(folder / "out" / "predictions" / "a.npy", np.zeros((3, 3), int))
    monkeypatch.setattr(evaluations, "running_config", lambda: {"spacing": [1, 1, 1], "pictures": 0})
    assert left(folder) == ["b"]
    monkeypatch.setattr(evaluations, "running_config", lambda: {"spacing": [1, 1, 2]})
    with pytest.raises(FileExistsError, match="made with other spacing, which would be scored with the new ones; take"):
        left(folder)
    (folder / "model.pt").write_bytes(b"other weights")
    with pytest.raises(FileExistsError, match="made with other weights, spacing"):
        left(folder)
    assert set(json.loads((folder / "out" / "predicted_by.json").read_text())) == {"weights", "spacing"}
