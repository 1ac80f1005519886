"""Step "cases -> patch": which case each patch of an epoch is cut from, and with which random numbers.

Both follow from the run's seed, the epoch and the patch's place in it, and from nothing else. So a resumed run draws
what an uninterrupted one would have drawn, whatever the number of loading processes, and several training processes
together draw what a single one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
from torch.utils.data import Dataset, Sampler

from .sampling import RandPatchd

__all__ = ["BatchDraws", "Draw", "DrawnDataset"]


class Draw(NamedTuple):
    """One patch: the index of its case, the seed of its crop and augmentation, and the class it must be centred on."""

    case: int
    seed: int
    wanted: int | None = None


class BatchDraws(Sampler[list[Draw]]):
    """The batches of an epoch, cases drawn with replacement; a ``batch_sampler`` for a :py:class:`DrawnDataset`.

    Of several processes each gets its share of every batch.

    A class that few scans hold is seen in few patches, however often the scans that hold it centre one on it: an artery
    of 4 scans in 22 with 13 classes each in 1.4 % of those on foreground. ``balanced_share`` draws the other way
    round, the class first, so that all classes are wanted equally often.

    Args:
        n_cases: how many cases there are.
        iterations: batches an epoch.
        batch_size: patches a batch, of all processes together.
        seed: of the run.
        balanced_share: of the patches, those whose class is drawn first, among all that any case holds, then a case
            that holds it. The case of the others is drawn first, and what they are centred on is left to
            :py:class:`monai_skelrec.RandPatchd`: with its ``foreground_share`` f, b + (1 - b) f of all patches are
            centred on foreground.
        classes: which classes each case holds, shape (n_cases, number of classes), bool, background first; called
            before the first epoch, as it may take time. See :py:class:`monai_skelrec.class_tables.ClassTable`.

    Raises:
        ValueError: when there are no cases, the processes cannot share a batch equally, or the share is not within 0
            and 1 or comes without classes.

    Example:
        >>> draws = BatchDraws(n_cases=20, iterations=250, batch_size=2, seed=0)
        >>> draws.set_epoch(7)
        >>> [[0 <= draw.case < 20 for draw in batch] for batch in draws][-1]
        [True, True]
    """

    def __init__(
        self,
        n_cases: int,
        iterations: int,
        batch_size: int,
        seed: int,
        balanced_share: float = 0.0,
        classes: Callable[[], np.ndarray] | None = None,
    ) -> None:
        if not 0 <= balanced_share <= 1:
            raise ValueError(f"balanced_share must be within 0 and 1, got {balanced_share}.")
        if balanced_share > 0 and classes is None:
            raise ValueError("balanced_share needs to know which classes each case holds: give classes.")
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
        self.balanced_share = balanced_share
        self.classes = classes
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
        shape = (self.iterations, self.batch_size)
        cases = random.integers(self.n_cases, size=shape)
        seeds = random.integers(2**32, size=shape)
        wanted = np.zeros(shape, dtype=int)
        if self.balanced_share > 0 and self.classes is not None:
            cases, wanted = self._balance(random, cases, self.classes())
        share = self.batch_size // idist.get_world_size()
        own = slice(idist.get_rank() * share, (idist.get_rank() + 1) * share)
        for row in range(self.iterations):
            drawn = zip(cases[row, own], seeds[row, own], wanted[row, own])
            yield [Draw(int(case), int(seed), int(target) or None) for case, seed, target in drawn]

    def _balance(
        self, random: np.random.Generator, cases: np.ndarray, holds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cases, a share of them drawn for the sake of a class, and that class; 0 where there is none."""
        if len(holds) != self.n_cases:
            raise ValueError(f"classes must have a row for each of {self.n_cases} cases, got {len(holds)}.")
        somewhere = 1 + np.flatnonzero(holds[:, 1:].any(0))
        cases, wanted = cases.copy(), np.zeros_like(cases)
        for place in zip(*np.nonzero(random.random(cases.shape) < self.balanced_share)):
            if len(somewhere):
                wanted[place] = random.choice(somewhere)
                cases[place] = random.choice(np.flatnonzero(holds[:, wanted[place]]))
        return cases, wanted


class DrawnDataset(Dataset):
    """A MONAI dataset whose random transforms start, for each patch, from the seed of its draw.

    Args:
        dataset: with a ``transform`` that has random states, such as :py:class:`monai.data.CacheDataset`. A class
            that a draw wants is told to each :py:class:`monai_skelrec.RandPatchd` among its steps.

    Raises:
        ValueError: of a draw that wants a class, when there is no such step that knows where classes lie.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        steps = dataset.transform.flatten().transforms
        self.patches = [step for step in steps if isinstance(step, RandPatchd) and step.indices_key is not None]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        if draw.wanted is not None and not self.patches:
            raise ValueError(
                "balanced_share centres patches on classes: it needs RandPatchd with indices_key, as a step of its own."
            )
        self.dataset.transform.set_random_state(seed=draw.seed)
        for step in self.patches:
            step.wanted = draw.wanted
        try:
            return self.dataset[draw.case]
        finally:
            for step in self.patches:
                step.wanted = None
