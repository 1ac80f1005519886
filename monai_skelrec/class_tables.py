"""Cases -> which classes each holds, for draws that begin with a class."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import DataLoader, Dataset

from .caching import cached_part

__all__ = ["ClassTable"]

_log = logging.getLogger(__name__)


class ClassTable:
    """Which classes each case of a training holds; looked up at the first call, and shared by several processes.

    It fills a cache of files on the way. Without one (``cache: none``) every case is loaded once for it.

    Args:
        dataset: made by :py:func:`monai_skelrec.caching.cached_dataset`.
        key: where ``ClassesToIndicesd`` leaves the indices of each class, background first.
        num_workers: processes that load.

    Returns:
        Of a call: bool, shape (number of cases, number of classes).

    Raises:
        ValueError: of a call, when a case has nothing under ``key`` before the first random step.
    """

    def __init__(self, dataset: Dataset, key: str, num_workers: int = 0) -> None:
        self.dataset = dataset
        self.key = key
        self.num_workers = num_workers
        self.table: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self.table is None:
            _log.info("looking up which classes each of %d scans holds", len(self.dataset))
            own = range(idist.get_rank(), len(self.dataset), idist.get_world_size())
            # a generator of its own: a run that is resumed looks again, and must draw what it would have drawn
            own_draws = torch.Generator()
            loader = DataLoader(_ClassesOf(self, own), self.num_workers, batch_size=None, generator=own_draws)
            # copies: each row of a loading process keeps a file open
            rows = [np.array(row) for row in loader]
            # a process with nothing to look up takes part in the sum, but does not know how many classes there are
            n_classes = idist.all_reduce(torch.tensor(len(rows[0]) if rows else 0), op="MAX")
            table = torch.zeros((len(self.dataset), int(n_classes)))
            for case, row in zip(own, rows):
                table[case] = torch.from_numpy(row)
            self.table = torch.as_tensor(idist.all_reduce(table)).numpy() > 0
        return self.table


class _ClassesOf(torch.utils.data.Dataset):
    """For each of some cases which classes it holds: what loading processes send, in place of whole scans."""

    def __init__(self, table: ClassTable, cases: Sequence[int]) -> None:
        self.dataset, self.key, self.cases = table.dataset, table.key, cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> np.ndarray:
        case = cached_part(self.dataset, self.cases[index])
        if self.key not in case:
            raise ValueError(
                f"balanced_share needs {self.key!r} of every case: put ClassesToIndicesd before the first random step."
            )
        return np.asarray([len(voxels) > 0 for voxels in case[self.key]], dtype=np.float32)
