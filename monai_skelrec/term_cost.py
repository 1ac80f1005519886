"""Beside the step "cases -> patch -> step of the network": what a term of the loss adds to a whole training step.

Steps with and without it take turns on the same patches, loading included, and are compared pair by pair: the network
costs many times what the term does, and its time varies more than the term takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import list_data_collate
from monai.engines import SupervisedTrainer
from monai.transforms import Compose
from monai.utils import CommonKeys
from scipy.stats import bootstrap

from .files import replace

__all__ = ["TermCost", "measure_term", "write_term_cost"]

_WARM_UP = 2  # pairs in which libraries load and memory is found
_RESAMPLES = 10000

Loss = Callable[[Any, torch.Tensor], torch.Tensor]


class TermCost(NamedTuple):
    """Seconds of whole steps, pair by pair: processor time on a CPU, the clock on a GPU."""

    with_term: np.ndarray
    without: np.ndarray

    @property
    def ratio(self) -> float:
        """Time with the term over time without."""
        return float(self.with_term.sum() / self.without.sum())

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % confidence interval of the ratio, by resampling the pairs.

        Args:
            seed: of the resampling.
        """
        found = bootstrap(
            (self.with_term, self.without),
            lambda a, b, axis: a.sum(axis) / b.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return float(found.low), float(found.high)


def measure_term(
    trainer: SupervisedTrainer,
    scans: Any,
    with_term: Compose,
    without: Compose,
    loss_without: Loss,
    batch_size: int,
    rounds: int,
    seed: int = 0,
) -> TermCost:
    """Train step by step, each batch once with the term and once without.

    Args:
        trainer: its network, optimizer, loss and device are used; it is not run.
        scans: data set of what the random steps take.
        with_term: random steps of the pipeline, tubed skeleton included.
        without: the same without the skeleton, giving a target of the same form.
        loss_without: loss without the term.
        batch_size: patches a step.
        rounds: pairs that count.
        seed: of cases and random steps.

    Raises:
        ValueError: when fewer than two pairs are asked for.
    """
    if rounds < 2:
        raise ValueError(f"comparing steps needs at least 2 rounds, got {rounds}.")
    device = torch.device(trainer.state.device or "cpu")
    now = time.perf_counter if device.type == "cuda" else time.process_time
    chosen = np.random.default_rng(seed).integers(len(scans), size=(_WARM_UP + rounds, batch_size))
    trainer.network.train()

    def seconds(cases: list[int], draw: int, pipeline: Compose, loss: Loss) -> float:
        start = now()
        pipeline.set_random_state(seed=draw)
        batch = list_data_collate([pipeline(scans[case]) for case in cases])
        image, target = (batch[key].to(device) for key in (CommonKeys.IMAGE, CommonKeys.LABEL))
        trainer.optimizer.zero_grad()
        with torch.autocast(device.type, enabled=bool(trainer.amp)):
            value = loss(trainer.network(image), target)
        value.backward()
        trainer.optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return now() - start

    pairs = np.zeros((len(chosen), 2))
    variants = ((with_term, trainer.loss_function), (without, loss_without))
    for row, cases in enumerate(chosen.tolist()):
        for turn in (0, 1):  # whoever comes second finds a warm cache: they take turns
            variant = (row + turn) % 2
            pairs[row, variant] = seconds(cases, seed + row, *variants[variant])
    return TermCost(*pairs[_WARM_UP:].T)


def write_term_cost(cost: TermCost, output_dir: str | Path) -> str:
    """Write ``term_cost.csv``, a line for each pair.

    Args:
        cost: of :py:func:`measure_term`.
        output_dir: folder, made when it is not there.

    Returns:
        The result in one sentence.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{a:.4f},{b:.4f}" for a, b in zip(*cost)]
    text = "\n".join(["with_s,without_s", *lines, ""])
    replace(folder / "term_cost.csv", lambda beside: beside.write_text(text, encoding="utf-8"))
    low, high = cost.interval()
    times = (
        f"{cost.with_term.mean():.3f} s with the whole loss and {cost.without.mean():.3f} s with Dice and cross-entropy"
    )
    return (
        f"A whole training step takes {times}, {cost.ratio:.3f} times ({low:.3f} to {high:.3f} with 95 % confidence, "
        f"{len(cost.without)} pairs)."
    )
