"""HRNet as a network of the bundle, where timm can be installed; one clear sentence where it is not."""

from __future__ import annotations

import sys

import pytest
import torch
from monai.utils import optional_import

from monai_skelrec import HRNet

HAS_TIMM = optional_import("timm")[1]


def test_missing_dependency_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ImportError, match=r"HRNet needs timm, .* pip install 'monai_skelrec\[hrnet\]', or train another"
    ):
        HRNet(3, 2)


def test_package_does_not_load_it():
    assert "timm" not in sys.modules or HAS_TIMM


@pytest.mark.skipif(not HAS_TIMM, reason="needs timm and torchvision")
def test_logits_have_the_size_of_the_picture_and_every_weight_learns():
    network = HRNet(3, 2, variant="hrnet_w18_small")
    logits = network(torch.randn(2, 3, 70, 96))
    assert logits.shape == (2, 2, 70, 96)
    logits.square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []
