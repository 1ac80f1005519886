"""Step "scan -> label map", timed: memory and time of a large scan, bounded, unbounded, and by MONAI's stock steps."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    SaveImaged,
    Spacingd,
)

from .label_files import write_label_map
from .peak_memory import peak_bytes
from .reading import read_scan
from .scans import Scan
from .segmenting import Segmenter
from .streaming import Windows

__all__ = ["WAYS", "benchmark_scans", "format_scans_benchmark"]

WAYS = ("stock", "streamed", "bounded")


def benchmark_scans(
    network: Callable[[], torch.nn.Module],
    *,
    shape: Sequence[int],
    voxel_size: Sequence[float],
    spacing: Sequence[float] | None,
    patch_size: Sequence[int],
    classes: int,
    overlap: float,
    max_memory_gb: float,
    ways: Sequence[str] = WAYS,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Segment one synthetic scan by several ways, each in a process of its own.

    Args:
        network: makes it; its weights are random, of one seed.
        shape: voxels of the scan, int16 in an uncompressed NIfTI file.
        voxel_size: mm.
        spacing: of the network's grid in mm; None: the scan's own.
        patch_size: voxels of a window.
        classes: output channels of the network.
        overlap: of windows.
        max_memory_gb: of the way "bounded".
        ways: some of "stock" (LoadImage, Orientation, Spacing, SlidingWindowInferer, Invert, AsDiscrete, SaveImage),
            "streamed" (ours without a bound) and "bounded".
        device: where the network runs and logits are summed up.

    Returns:
        One dictionary a way: ``way``, ``peak_gb`` (of the process, the libraries' ``before_gb`` included), ``cpu_s``
        (reading and writing included), ``clock_s``, ``tiles``, ``different``: share of voxels of another class than the
        first way's, and on a GPU ``gpu_gb``: the peak of its tensors.

    Raises:
        ValueError: when a way is unknown.
    """
    unknown = sorted(set(ways) - set(WAYS))
    if unknown:
        raise ValueError(f"ways must be some of {', '.join(WAYS)}, got {unknown[0]!r}.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii"
        scan = np.random.default_rng(0).integers(-200, 1500, tuple(shape), np.int16)
        nibabel.save(nibabel.Nifti1Image(scan, np.diag([*voxel_size, 1.0])), path)
        del scan
        options = {
            "network": network,
            "spacing": spacing,
            "patch_size": tuple(patch_size),
            "classes": classes,
            "overlap": overlap,
            "max_memory_gb": max_memory_gb,
            "device": device,
        }
        first: np.ndarray | None = None
        for way in ways:
            # a process of its own: the peak of memory is read when it ends
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(_measure, (way, str(path), options))
            labels = np.asarray(nibabel.load(row.pop("label_map")).dataobj, np.uint8)  # type: ignore[attr-defined]
            first = labels if first is None else first
            rows.append({"way": way, **row, "different": float((labels != first).mean())})
    return rows


def format_scans_benchmark(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of what :py:func:`benchmark_scans` measured.

    Args:
        rows: in the order of their lines; ratios are to the first.
    """
    columns = {"peak memory": ("peak_gb", ".2f", "GB"), "CPU time": ("cpu_s", ".0f", "s")}
    if all("gpu_gb" in row for row in rows):
        columns |= {"GPU memory": ("gpu_gb", ".2f", "GB"), "time": ("clock_s", ".1f", "s")}
    heads = ["way", *(head for column in columns for head in (column, "ratio")), "tiles", "other class"]
    table = [heads, ["---"] * len(heads)]
    for row in rows:
        cells = [str(row["way"])]
        for name, digits, unit in columns.values():
            cells += [f"{row[name]:{digits}} {unit}", f"{row[name] / rows[0][name]:.2f}"]
        table.append([*cells, str(row["tiles"]), f"{row['different']:.1e}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _measure(way: str, path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    before = peak_bytes() / 1e9
    torch.manual_seed(0)
    device = torch.device(options["device"])
    network = options["network"]().eval().to(device)
    began, clock = time.process_time(), time.perf_counter()
    target = f"{path.removesuffix('.nii')}_{way}.nii"
    tiles = 1
    if way == "stock":
        _stock(path, target, network, options)
    else:
        result = Segmenter(
            network,
            Windows(options["patch_size"], options["overlap"], device=device, buffer_device=device),
            options["classes"],
            spacing=options["spacing"],
            intensity=NormalizeIntensityd("image"),
            max_memory_gb=options["max_memory_gb"] if way == "bounded" else None,
        )(lambda: read_scan(Scan("scan", path)))
        write_label_map(target, result.labels, result.affine, path)
        tiles = result.plan.tiles
    row = {
        "peak_gb": peak_bytes() / 1e9,
        "before_gb": before,
        "cpu_s": time.process_time() - began,
        "clock_s": time.perf_counter() - clock,
        "tiles": tiles,
        "label_map": target,
    }
    return row if device.type == "cpu" else {**row, "gpu_gb": peak_bytes(device) / 1e9}


def _stock(path: str, target: str, network: torch.nn.Module, options: Mapping[str, Any]) -> None:
    """The steps of a bundle of MONAI's model zoo, as inference.json has them."""
    steps: list[Any] = [LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None)]
    steps += [Spacingd("image", options["spacing"], mode="bilinear")] if options["spacing"] else []
    before = Compose([*steps, NormalizeIntensityd("image")])
    after = Compose(
        [
            Invertd("pred", before, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged(
                "pred",
                output_dir=str(Path(target).parent),
                output_postfix="stock",
                output_ext=".nii",
                output_dtype=np.uint8,
                separate_folder=False,
                print_log=False,
            ),
        ]
    )
    inferer = SlidingWindowInferer(options["patch_size"], 1, options["overlap"], mode="gaussian")
    with torch.no_grad():
        data = before({"image": path})
        data["pred"] = inferer(data["image"][None].to(options["device"]), network)[0]
        after(data)
