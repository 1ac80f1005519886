"""The benchmark of segmenting times ways that agree, and its table says by how much they differ."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from monai_skelrec.benchmark_scans import WAYS, benchmark_scans, format_scans_benchmark

OPTIONS = {
    "shape": (48, 44, 40),
    "voxel_size": (0.4, 0.4, 0.4),
    "spacing": (0.5, 0.5, 0.5),
    "patch_size": (8, 8, 8),
    "classes": 3,
    "overlap": 0.5,
    "max_memory_gb": 0.0007,
}


def network():
    return torch.nn.Conv3d(1, 3, 3, padding=1)


@pytest.fixture(scope="module")
def rows():
    # forked from a process that has imported everything: a new one would spend most of its life on that
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["monai_skelrec.benchmark_scans"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda kind: context)
        return benchmark_scans(network, **OPTIONS)


def test_every_way_is_measured_and_gives_the_same_classes(rows):
    assert [row["way"] for row in rows] == list(WAYS)
    for row in rows:
        # two classes within rounding of each other may change places
        assert row["different"] < 1e-3
        assert 0 < row["before_gb"] <= row["peak_gb"] < 4 and row["cpu_s"] > 0
        assert "label_map" not in row
    assert rows[0]["different"] == 0 and [row["tiles"] > 1 for row in rows] == [False, False, True]


def test_unknown_way_is_refused_before_anything_is_run():
    with pytest.raises(ValueError, match="ways must be some of stock, streamed, bounded, got 'fast'."):
        benchmark_scans(lambda: pytest.fail("a network was made"), **OPTIONS, ways=("streamed", "fast"))


def test_table_has_ratios_to_its_first_line():
    rows = [
        {"way": "stock", "peak_gb": 4.0, "before_gb": 0.4, "cpu_s": 200.0, "tiles": 1, "different": 0.0},
        {"way": "bounded", "peak_gb": 1.0, "before_gb": 0.4, "cpu_s": 250.0, "tiles": 3, "different": 2e-6},
    ]
    assert format_scans_benchmark(rows).splitlines() == [
        "| way | peak memory | ratio | CPU time | ratio | tiles | other class |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| stock | 4.00 GB | 1.00 | 200 s | 1.00 | 1 | 0.0e+00 |",
        "| bounded | 1.00 GB | 0.25 | 250 s | 1.25 | 3 | 2.0e-06 |",
    ]


def test_table_of_a_gpu_has_its_memory_and_the_time_by_the_clock():
    row = {"way": "stock", "peak_gb": 4.0, "cpu_s": 200.0, "tiles": 1, "different": 0.0, "gpu_gb": 8.0, "clock_s": 12.0}
    head, _, first, second = format_scans_benchmark([row, {**row, "gpu_gb": 2.0, "clock_s": 9.0}]).splitlines()
    assert head == (
        "| way | peak memory | ratio | CPU time | ratio | GPU memory | ratio | time | ratio | tiles | other class |"
    )
    assert first.endswith("| 8.00 GB | 1.00 | 12.0 s | 1.00 | 1 | 0.0e+00 |")
    assert second.endswith("| 2.00 GB | 0.25 | 9.0 s | 0.75 | 1 | 0.0e+00 |")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_every_way_gives_the_same_classes_in_less_memory_than_the_stock_one():
    rows = benchmark_scans(network, **{**OPTIONS, "shape": (160, 144, 128), "patch_size": (16, 16, 16)}, device="cuda")
    assert all(row["different"] < 1e-3 for row in rows)
    assert 0 < rows[1]["gpu_gb"] < rows[0]["gpu_gb"]
