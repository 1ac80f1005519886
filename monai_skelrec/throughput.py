"""Beside the step "cases -> patch -> step of the network": where the time of a training goes, and who waits for whom.

Loading is measured step by step in this process and on one thread, as a loading process works; processor time is free
of what else the machine does. Training is measured by the clock, over one short epoch. Together they say how many
loading processes keep the network busy.
"""

from __future__ import annotations

import csv
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import torch
from ignite.engine import Events
from monai.data import Dataset, list_data_collate
from monai.engines import IterationEvents, SupervisedTrainer
from monai.transforms import Compose
from monai.transforms.traits import RandomizableTrait

from .caching import cached_dataset
from .files import replace

__all__ = ["Profile", "Row", "measure_loading", "measure_training", "write_profile"]

_WARM_UP = 2  # iterations in which libraries load and memory is found


class Row(NamedTuple):
    """What one step costs: of loading, per patch; of training, per batch."""

    step: str
    processor_ms: float
    clock_ms: float


class Profile(NamedTuple):
    """Everything that was measured."""

    loading: list[Row]
    naive: list[Row]
    training: list[Row]
    batch_size: int
    first_batch_s: float
    on_gpu: bool

    @property
    def patch_s(self) -> float:
        """Processor time of loading one patch."""
        return sum(row.processor_ms for row in self.loading) / 1000

    @property
    def network_s(self) -> float:
        """Time of one step of the network, without waiting: by the clock on a GPU, else of the processor."""
        if self.on_gpu:
            return sum(row.clock_ms for row in self.training[1:]) / 1000
        return sum(row.processor_ms for row in self.training[1:]) / 1000 / torch.get_num_threads()

    @property
    def workers(self) -> int:
        """Loading processes, of a core each, that make a batch in the time in which the network uses one."""
        return math.ceil(self.patch_s * self.batch_size / self.network_s)


def measure_loading(
    dataset_of: Callable[[Compose], Dataset], transform: Compose, patches: int, seed: int = 0
) -> list[Row]:
    """Take patches one after the other and measure each step of the pipeline.

    Args:
        dataset_of: makes the data set of the steps before the first random one; they are measured together.
        transform: the pipeline.
        patches: how many are taken.
        seed: of cases and random steps.

    Returns:
        A row for each step, means over the patches; a random step that is seldom taken costs its share.
    """
    steps = transform.flatten().transforms
    first = next((at for at, step in enumerate(steps) if isinstance(step, RandomizableTrait)), len(steps))
    scans = dataset_of(Compose(steps[:first]))
    Compose(steps[first:]).set_random_state(seed=seed)
    chosen = np.random.default_rng(seed).integers(len(scans), size=patches)
    for case in set(chosen.tolist()):  # a cache is filled once in a training, which is not what is measured
        scans[case]
    names = [f"{number}. {type(step).__name__}" for number, step in enumerate(steps[first:], start=2)]
    sums = np.zeros((len(names) + 2, 2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for case in chosen.tolist():
            marks = [_now()]
            item: Any = scans[case]
            marks.append(_now())
            for step in steps[first:]:
                item = _apply(step, item)
                marks.append(_now())
            list_data_collate([item])
            marks.append(_now())
            sums += np.diff(marks, axis=0)
    finally:
        torch.set_num_threads(threads)
    named = ["1. the scan, read from the cache or made", *names, f"{len(names) + 2}. collate"]
    return [Row(name, *(1000 * cost / patches)) for name, cost in zip(named, sums)]


def measure_training(trainer: SupervisedTrainer) -> tuple[list[Row], float]:
    """Run a trainer to its end and measure the parts of an iteration by the clock.

    Args:
        trainer: of one short epoch, at least four iterations.

    Returns:
        A row for each part, the wait for a batch first, means without the first iterations; and the seconds that the
        first batch took, loading processes started.

    Raises:
        ValueError: when there are too few iterations.
    """
    if trainer.state.epoch_length <= _WARM_UP + 1:
        raise ValueError(f"a profile needs at least {_WARM_UP + 2} iterations, got {trainer.state.epoch_length}.")
    parts: dict[Any, str] = {
        Events.GET_BATCH_COMPLETED: "wait for the batch",
        IterationEvents.FORWARD_COMPLETED: "to the device, forward",
        IterationEvents.LOSS_COMPLETED: "loss",
        IterationEvents.BACKWARD_COMPLETED: "backward",
        IterationEvents.MODEL_COMPLETED: "clipping, optimizer",
        Events.ITERATION_COMPLETED: "what is left of the iteration",
    }
    marks: list[list[tuple[float, float]]] = []

    def mark(_: Any, begin: bool = False) -> None:
        if _is_gpu(trainer):
            torch.cuda.synchronize()
        if begin:
            marks.append([])
        marks[-1].append(_now())

    trainer.add_event_handler(Events.GET_BATCH_STARTED, mark, begin=True)
    for event in parts:
        trainer.add_event_handler(event, mark)
    trainer.run()
    whole = np.asarray([one for one in marks if len(one) == len(parts) + 1])
    costs = np.diff(whole, axis=1)
    means = 1000 * costs[_WARM_UP:].mean(axis=0)
    return [Row(part, *cost) for part, cost in zip(parts.values(), means)], float(costs[0, 0, 1])


def write_profile(
    output_dir: str,
    data: Sequence[dict[str, Any]],
    transform: Compose,
    naive: Compose,
    trainer: SupervisedTrainer,
    batch_size: int,
    cache: str,
    cache_dir: str | None,
    patches: int,
    naive_patches: int,
    num_workers: int,
) -> Profile:
    """Measure loading, the naive order of the same transforms, and training; write ``profile.csv`` and ``profile.md``.

    Args:
        output_dir: folder, made when it is not there.
        data: training cases.
        transform: pipeline of training.
        naive: the same steps in the order in which one would write them down; nothing of it is cached.
        trainer: of one short epoch.
        batch_size: patches a step.
        cache: see :py:func:`monai_skelrec.caching.cached_dataset`.
        cache_dir: likewise.
        patches: measured ones.
        naive_patches: measured ones of the naive order.
        num_workers: loading processes that the trainer has; named in the report.
    """
    loading = measure_loading(
        lambda steps: cached_dataset(data, steps, cache=cache, cache_dir=cache_dir), transform, patches
    )
    plain = measure_loading(lambda steps: Dataset(data, steps), naive, naive_patches)
    training, first_batch_s = measure_training(trainer)
    on_gpu = _is_gpu(trainer)
    profile = Profile(loading, plain, training, batch_size, first_batch_s, on_gpu)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "profile.csv", lambda beside: _write_csv(beside, profile))
    replace(folder / "profile.md", lambda beside: beside.write_text(_report(profile, num_workers), encoding="utf-8"))
    return profile


def _is_gpu(trainer: SupervisedTrainer) -> bool:
    return torch.device(trainer.state.device or "cpu").type == "cuda"


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _apply(step: Callable[[Any], Any], item: Any) -> Any:
    """MONAI's crops may hand on a list of patches, of which each goes through the next step."""
    return [step(one) for one in item] if isinstance(item, list) else step(item)


def _write_csv(path: Path, profile: Profile) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["part", *Row._fields])
        for part in ("loading", "naive", "training"):
            writer.writerows([part, row.step, *(f"{cost:.3f}" for cost in row[1:])] for row in getattr(profile, part))


def _report(profile: Profile, num_workers: int) -> str:
    naive_s = sum(row.processor_ms for row in profile.naive) / 1000
    wait, step = profile.training[0].clock_ms, sum(row.clock_ms for row in profile.training)
    lines = [
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, MONAI {monai.__version__}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads, {num_workers} loading processes.",
        "",
        f"- A core loads {1 / profile.patch_s:.2f} patches a second; in the naive order {1 / naive_s:.3f}, "
        f"{naive_s / profile.patch_s:.0f} times fewer.",
        f"- The network uses a batch of {profile.batch_size} in {profile.network_s:.3f} s. By the clock it waited "
        f"{wait / 1000:.3f} s for each, {wait / step:.0%} of a step; the first one took {profile.first_batch_s:.1f} s.",
        f"- {profile.workers} loading process(es), a core each, feed it (--num_workers {profile.workers}).",
    ]
    for heading, rows, per in (
        ("Loading", profile.loading, "patch"),
        ("Loading in the naive order", profile.naive, "patch"),
        ("Training", profile.training, "batch"),
    ):
        processor, clock = sum(row.processor_ms for row in rows), sum(row.clock_ms for row in rows)
        waited = per == "batch" and profile.on_gpu
        lines += ["", f"| {heading} | processor, ms a {per} | clock, ms a {per} | share |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {row.step} | {row.processor_ms:.1f} | {row.clock_ms:.1f} "
            f"| {row.clock_ms / clock if waited else row.processor_ms / processor:.0%} |"
            for row in rows
        ]
        lines.append(f"| all | {processor:.1f} | {clock:.1f} | |")
    return "\n".join(lines) + "\n"
