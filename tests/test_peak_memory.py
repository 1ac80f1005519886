"""Peak memory against what the system says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from monai_skelrec import peak_memory


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_the_peak_of_a_process_is_what_linux_says():
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    # a peak of the program that started this one may be in it
    assert peak_memory.peak_bytes() >= 0.98 * 1024 * int(peak.split()[1]) > 2**20


def test_a_system_that_does_not_tell_gives_nan(monkeypatch):
    monkeypatch.setattr(peak_memory, "_has_resource", False)
    assert math.isnan(peak_memory.peak_bytes())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_its_tensors_and_begins_anew():
    torch.zeros(2**26, device="cuda").sum()
    assert peak_memory.peak_bytes("cuda") >= 2**28
    held = torch.zeros(2**20, device="cuda")
    assert held.nbytes <= peak_memory.peak_bytes("cuda", reset=True) < 2**28
