"""Step "work -> the most memory it held": of this process, or on a GPU of its tensors."""

from __future__ import annotations

import math
import sys

import torch
from monai.utils import optional_import

__all__ = ["peak_bytes"]

resource, _has_resource = optional_import("resource")


def peak_bytes(device: torch.device | str = "cpu", reset: bool = False) -> float:
    """Most memory held so far.

    Args:
        device: a GPU, whose tensors are counted; else this process from its start, libraries included.
        reset: begin anew on a GPU: what is held now is returned. A process on a CPU has one peak, which stays.

    Returns:
        Bytes; NaN on a system that does not tell (Windows).
    """
    device = torch.device(device)
    if device.type != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.max_memory_allocated(device))
    if not _has_resource:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kilobytes, on macOS bytes
    return float(peak if sys.platform == "darwin" else 1024 * peak)
