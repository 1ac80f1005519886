"""HRNet as a network of the bundle: around timm's backbone where that can be installed, and around a small one."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import monai.bundle
import pytest
import torch
import yaml
from bundle_data import ROOT, SMALL_BUDGET, files_of, run_of, write_data
from monai.utils import optional_import

from monai_skelrec import HRNet

HAS_TIMM = optional_import("timm")[1]


class Branches(torch.nn.Module):
    """Four resolutions, as timm's HRNet hands them out."""

    def __init__(self, channels):
        super().__init__()
        self.stem = torch.nn.Conv2d(channels, 4, 4, stride=4)
        self.down = torch.nn.ModuleList([torch.nn.Conv2d(4, 4, 2, stride=2) for _ in range(3)])
        self.feature_info = types.SimpleNamespace(channels=lambda: [4, 4, 4, 4])

    def forward(self, x):
        found = [self.stem(x)]
        for step in self.down:
            found.append(step(found[-1]))
        return found


@pytest.fixture
def backbones(monkeypatch):
    """timm, of which nothing is known but its interface; what was asked of it."""
    asked = []

    def create_model(variant, pretrained, in_chans, **options):
        asked.append({"variant": variant, "pretrained": pretrained, "in_chans": in_chans, **options})
        return Branches(in_chans)

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model, __version__="1.0"))
    return asked


def test_missing_dependency_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ImportError, match=r"HRNet needs timm, .* pip install 'monai_skelrec\[hrnet\]', or train another"
    ):
        HRNet(3, 2)


def test_package_does_not_load_it(tmp_path):
    (tmp_path / "timm.py").write_text("raise SystemExit('timm was loaded')")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-c", "import monai_skelrec; print('not yet'); import timm"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.stderr.strip().endswith("timm was loaded") and done.stdout.strip() == "not yet"


def test_four_resolutions_become_logits_of_the_size_of_the_picture(backbones):
    network = HRNet(3, 2, variant="hrnet_w18", pretrained=True)
    logits = network(torch.randn(2, 3, 70, 97))
    assert logits.shape == (2, 2, 70, 97)
    logits.square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []
    assert (backbones[0]["variant"], backbones[0]["pretrained"], backbones[0]["in_chans"]) == ("hrnet_w18", True, 3)


def test_bundle_trains_it_on_whole_pictures_and_asks_once_for_pretrained_weights(backbones, tmp_path):
    data = write_data("folder_2d", tmp_path / "data")
    network = {"_target_": "monai_skelrec.HRNet", "in_channels": "@in_channels", "out_channels": 2, "pretrained": True}
    monai.bundle.run(
        run_id="training",
        config_file=files_of("train.yaml", "folder_2d.yaml"),
        dataset_dir=str(data),
        output_dir=str(tmp_path / "run"),
        network_def=network,
        **SMALL_BUDGET | {"patch_size": [37, 45], "strides": [1], "kernel_size": [3], "filters": [1], "momentum": 0.9},
    )
    assert [each["pretrained"] for each in backbones] == [True]
    assert yaml.safe_load((tmp_path / "run" / "task.yaml").read_text())["network_def"]["pretrained"] is False
    monai.bundle.run(
        run_id="evaluating",
        config_file=run_of(tmp_path, "evaluate.yaml"),
        dataset_dir=str(data),
        output_dir=str(tmp_path / "evaluation"),
    )
    assert (tmp_path / "evaluation" / "scores.csv").is_file()
    assert [each["pretrained"] for each in backbones] == [True, False]


@pytest.mark.skipif(not HAS_TIMM, reason="needs timm and torchvision")
def test_logits_of_timms_own_have_the_size_of_the_picture_and_every_weight_learns():
    network = HRNet(3, 2, variant="hrnet_w18_small")
    logits = network(torch.randn(2, 3, 70, 96))
    assert logits.shape == (2, 2, 70, 96)
    logits.square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []
