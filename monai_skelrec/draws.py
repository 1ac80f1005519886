"""Step "cases -> patch": which case each patch of an epoch is cut from, and with which random numbers.

Both follow from the run's seed, the epoch and the patch's place in it, and from nothing else. So a resumed run draws
what an uninterrupted one would have drawn, whatever the number of loading processes, and several training processes
together draw what a single one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
from torch.utils.data import Dataset, Sampler

__all__ = ["BatchDraws", "Draw", "DrawnDataset"]


class Draw(NamedTuple):
    """One patch: the index of its case and the seed of its crop and augmentation."""

    case: int
    seed: int


class BatchDraws(Sampler[list[Draw]]):
    """The batches of an epoch, cases drawn with replacement; a ``batch_sampler`` for a :py:class:`DrawnDataset`.

    Of several processes each gets its share of every batch.

    Args:
        n_cases: how many cases there are.
        iterations: batches an epoch.
        batch_size: patches a batch, of all processes together.
        seed: of the run.

    Raises:
        ValueError: when there are no cases, or the processes cannot share a batch equally.

    Example:
        >>> draws = BatchDraws(n_cases=20, iterations=250, batch_size=2, seed=0)
        >>> draws.set_epoch(7)
        >>> [[0 <= draw.case < 20 for draw in batch] for batch in draws][-1]
        [True, True]
    """

    def __init__(self, n_cases: int, iterations: int, batch_size: int, seed: int) -> None:
        if n_cases < 1:
            raise ValueError("there are no cases to draw from: expected at least one for training.")
        processes = idist.get_world_size()
        if batch_size % processes:
            raise ValueError(
                f"{processes} processes cannot share a batch of {batch_size} patches equally: set --batch_size, which "
                f"counts the patches of all processes, to a multiple of {processes}, or start fewer processes."
            )
        self.n_cases = n_cases
        self.iterations = iterations
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """
        Args:
            epoch: whose batches come next.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[list[Draw]]:
        # hashed: epoch 2 of seed 0 must not draw what epoch 1 of seed 1 draws
        random = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch]))
        cases = random.integers(self.n_cases, size=(self.iterations, self.batch_size))
        seeds = random.integers(2**32, size=(self.iterations, self.batch_size))
        share = self.batch_size // idist.get_world_size()
        own = slice(idist.get_rank() * share, (idist.get_rank() + 1) * share)
        for row in range(self.iterations):
            yield [Draw(int(case), int(seed)) for case, seed in zip(cases[row, own], seeds[row, own])]


class DrawnDataset(Dataset):
    """A MONAI dataset whose random transforms start, for each patch, from the seed of its draw.

    Args:
        dataset: with a ``transform`` that has random states, such as :py:class:`monai.data.CacheDataset`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        self.dataset.transform.set_random_state(seed=draw.seed)
        return self.dataset[draw.case]
