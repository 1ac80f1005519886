"""What scoring a whole case costs, against scoring each class on the whole volume: time and memory, side by side."""

from __future__ import annotations

import csv
import math
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from skimage.measure import euler_number, label
from skimage.morphology import skeletonize

from .benchmark_skeletons import curved_tubes
from .case_scores import score_indices
from .peak_memory import peak_bytes

__all__ = ["MEASURED", "naive_scores", "score_speed", "vessel_pair"]

MEASURED = ("dice", "centerline_dice", "betti0_error", "betti1_error", "hausdorff95_mm")
_SPACING = (0.4, 0.4, 0.65)
_CLASSES = 13


def vessel_pair(shape: Sequence[int], box: Sequence[int], tubes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a reference of thin tubes in 13 classes, and a prediction that is one voxel off and has gaps.

    Args:
        shape: of the volume.
        box: of the part in its middle that holds the tubes; the size of a Circle of Willis, or all.
        tubes: how many.

    Returns:
        Prediction and reference, class indices, uint8.
    """
    inner = curved_tubes(tuple(box), tubes, seed=1).astype(np.uint8)
    reference = np.zeros(shape, np.uint8)
    start = [(size - side) // 2 for size, side in zip(shape, box, strict=True)]
    place = tuple(slice(first, first + side) for first, side in zip(start, box, strict=True))
    reference[place] = inner
    shifted = np.roll(inner, 1, axis=0)
    shifted[:, :: max(box[1] // 7, 8)] = 0
    pred = np.zeros_like(reference)
    pred[place] = shifted
    return pred, reference


def naive_scores(pred: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The five measures of two masks on the whole volume, as scripts compute them that crop and share nothing."""
    lines = skeletonize(pred), skeletonize(reference)
    precision, sensitivity = (mask[line].mean() if line.any() else 0.0 for mask, line in zip((reference, pred), lines))
    betti = []
    for mask in (np.pad(pred, 1), np.pad(reference, 1)):
        components, enclosed = label(mask, connectivity=3).max(), label(~mask, connectivity=1).max() - 1
        betti.append((components, components + enclosed - euler_number(mask, connectivity=3)))
    y_pred, y = (torch.from_numpy(mask)[None, None].float() for mask in (pred, reference))
    distance = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=list(_SPACING))
    total = precision + sensitivity
    return {
        "dice": float(2 * (pred & reference).sum() / (pred.sum() + reference.sum())),
        "centerline_dice": float(2 * precision * sensitivity / total) if total else 0.0,
        "betti0_error": float(abs(betti[0][0] - betti[1][0])),
        "betti1_error": float(abs(betti[0][1] - betti[1][1])),
        "hausdorff95_mm": float(distance),
    }


def score_speed(
    output_dir: str | Path, naive_classes: int = 2, repeats: int = 3, threads: int = 2
) -> list[dict[str, Any]]:
    """Time our scores of whole cases, and the naive way on some classes; write ``scoring.csv`` and ``scoring.md``.

    Each measurement runs in a process of its own, whose peak of memory is read when it ends; what the arrays and the
    libraries take before is given beside it.

    Args:
        output_dir: folder to write to.
        naive_classes: classes that the naive way scores; its time for all is that of these, times 13 by their number.
        repeats: runs of ours; the fastest counts.
        threads: of ours and of the naive way.

    Returns:
        One dictionary a volume: volume, tubes, foreground (voxels), five_s and five_cpu_s (ours, the five measures of
        the naive way; wall clock, and processor time of all threads), all_s and all_cpu_s (all measures), naive_s and
        naive_cpu_s (of all 13 classes, extrapolated), naive_classes, ratio (of processor times, which other work on the
        machine changes little), peak_gib and before_gib (ours), equal (whether the naive scores of these classes are
        ours).
    """
    cases = [
        ("512x512x200, a Circle of Willis in it", (512, 512, 200), (160, 140, 100), 14, naive_classes),
        ("512x512x200, filled with vessels", (512, 512, 200), (512, 512, 200), 60, 0),
        ("512x512x512, filled with vessels", (512, 512, 512), (512, 512, 512), 40, 0),
    ]
    rows = []
    for what, shape, box, tubes, classes in cases:
        ours = _in_a_process(_ours, (shape, box, tubes, repeats, threads))
        row = {"volume": what, "tubes": tubes, "foreground": ours["foreground"]}
        row |= {name: ours[name] for name in ("five_s", "five_cpu_s", "all_s", "all_cpu_s", "peak_gib", "before_gib")}
        if classes:
            naive = _in_a_process(_naive, (shape, box, tubes, classes, threads))
            share = ours["classes"] / classes
            equal = all(
                math.isclose(value, ours["scores"][index][name], rel_tol=1e-5)
                for index, scores in naive["scores"].items()
                for name, value in scores.items()
            )
            row |= {"naive_s": round(naive["seconds"] * share, 1), "naive_cpu_s": round(naive["cpu"] * share, 1)}
            row |= {"naive_classes": classes, "equal": equal}
            row["ratio"] = round(naive["cpu"] * share / ours["five_cpu_s"])
        rows.append(row)
    _write(rows, Path(output_dir))
    return rows


def _ours(shape: Sequence[int], box: Sequence[int], tubes: int, repeats: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    score_indices(*vessel_pair((32, 32, 32), (32, 32, 32), 2), _names(), _SPACING)  # tables are filled once a process
    pred, reference = vessel_pair(shape, box, tubes)
    before = round(peak_bytes() / 2**30, 2)
    seconds: dict[str, list[float]] = {"five_s": [], "five_cpu_s": [], "all_s": [], "all_cpu_s": []}
    for _ in range(repeats):
        for name, measures in (("five", MEASURED), ("all", None)):
            begin, spent = time.perf_counter(), time.process_time()
            rows = score_indices(pred, reference, _names(), _SPACING, measures)
            seconds[f"{name}_s"].append(time.perf_counter() - begin)
            seconds[f"{name}_cpu_s"].append(time.process_time() - spent)
    return {
        "foreground": int(np.count_nonzero(reference)),
        "classes": len(rows) - 1,
        "scores": {row["class"]: row for row in rows},
        **{name: round(min(times), 3) for name, times in seconds.items()},
        "before_gib": before,
        "peak_gib": round(peak_bytes() / 2**30, 2),
    }


def _naive(shape: Sequence[int], box: Sequence[int], tubes: int, classes: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    pred, reference = vessel_pair(shape, box, tubes)
    begin, spent = time.perf_counter(), time.process_time()
    scores = {_names()[index]: naive_scores(pred == index, reference == index) for index in range(1, classes + 1)}
    return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - spent, "scores": scores}


def _names() -> list[str]:
    return ["background", *(f"class {index}" for index in range(1, _CLASSES + 1))]


def _in_a_process(measure: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, measure, arguments))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(
            f"the measurement died with exit status {process.exitcode}, most likely for lack of memory."
        ) from error
    process.join()
    return found


def _send(sender: Connection, measure: Any, arguments: tuple[Any, ...]) -> None:
    sender.send(measure(*arguments))


def _write(rows: Sequence[dict[str, Any]], output_dir: Path) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys(key for row in rows for key in row)
    with open(output_dir / "scoring.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "| volume | foreground | five measures (CPU) | all measures (CPU) | peak (before) | naive (CPU) | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        naive = f"{row['naive_s']} ({row['naive_cpu_s']}) s" if "naive_s" in row else "-"
        ours = [f"{row[f'{name}_s']} ({row[f'{name}_cpu_s']}) s" for name in ("five", "all")]
        memory = f"{row['peak_gib']} ({row['before_gib']}) GiB"
        cells = [row["volume"], f"{row['foreground']:,}", *ours, memory, naive, str(row.get("ratio", "-"))]
        lines.append(f"| {' | '.join(cells)} |")
    (output_dir / "scoring.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
