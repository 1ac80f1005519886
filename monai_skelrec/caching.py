"""Cases -> data set: what is the same in every epoch is done once, and never served when it has become wrong."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor, PersistentDataset
from monai.transforms import Compose, Transform
from monai.transforms.traits import RandomizableTrait

from .files import replace
from .fingerprints import file_state, fingerprint

__all__ = ["CACHES", "FileCacheDataset", "cached_dataset", "cached_part"]

CACHES = ("none", "persistent", "memory")


def cached_dataset(
    data: Sequence[dict[str, Any]],
    transform: Compose,
    cache: str = "persistent",
    cache_dir: str | None = None,
    cache_rate: float = 1.0,
    num_workers: int = 0,
) -> Dataset:
    """Make the data set of a training or a validation.

    The steps up to the first random one are those that are cached.

    Args:
        data: cases.
        transform: the whole pipeline. Its first random step must copy what it takes, as
            :py:class:`monai_skelrec.RandPatchd` does: a cached scan is handed out itself.
        cache: ``"none"`` does every step every time; ``"memory"`` keeps results while this process lives;
            ``"persistent"`` keeps them in files, see :py:class:`FileCacheDataset`.
        cache_dir: folder of the files.
        cache_rate: share of the cases that ``"memory"`` keeps.
        num_workers: threads that fill the memory.

    Raises:
        ValueError: when the cache is unknown, or there is no folder for its files.
    """
    if cache not in CACHES:
        raise ValueError(f"cache must be one of {', '.join(map(repr, CACHES))}, got {cache!r}.")
    # MONAI takes a Compose within a Compose for a random step
    transform = transform.flatten()
    if cache == "memory":
        return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=max(1, num_workers), copy_cache=False)
    if cache == "persistent":
        if cache_dir is None:
            raise ValueError("cache 'persistent' needs a folder for its files, cache_dir.")
        return FileCacheDataset(data, transform, cache_dir)
    return Dataset(data, transform)


class FileCacheDataset(PersistentDataset):
    """MONAI's ``PersistentDataset``, whose file of a case is another one as soon as anything it came from is another.

    A file's name is made of the settings of the cached steps, the values of the case, and name, size and time of the
    files that the case names. So a changed config and a label that was overwritten give a new file, several runs share
    a folder, and nothing is deleted: old files stay until the folder is emptied. Several processes may write a file at
    once; it appears whole. It is mapped into memory, so of a large scan only the part that is cut out is read.

    Args:
        data: cases; dictionaries of plain values.
        transform: the whole pipeline, without a ``Compose`` in it.
        cache_dir: folder, made with its first file.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Compose, cache_dir: str | Path) -> None:
        # MONAI would make the folder now, also for a run that is refused before it starts
        super().__init__(data=data, transform=transform, cache_dir=None, track_meta=True)
        self.folder = Path(cache_dir)
        self.transform_hash = fingerprint(list(transform.transforms[: transform.get_index_of_first(_may_differ)]))

    def _cachecheck(self, item_transformed: dict[str, Any]) -> Any:
        name = fingerprint(self.transform_hash, _state_of(item_transformed))
        path = self.folder / f"{name}.pt"
        if not path.is_file():
            result = self._pre_transform(dict(item_transformed))
            self.folder.mkdir(parents=True, exist_ok=True)
            replace(path, lambda beside: torch.save(_plain(result), beside))
        return torch.load(path, weights_only=True, mmap=True)


def cached_part(dataset: Dataset, index: int) -> Any:
    """What the steps before the first random one make of a case, from the cache where it is there.

    Args:
        dataset: made by :py:func:`cached_dataset`.
        index: of the case.
    """
    if isinstance(dataset, FileCacheDataset):
        return dataset._cachecheck(dataset.data[index])
    if isinstance(dataset, CacheDataset) and index < dataset.cache_num:
        return dataset._cache[index]
    first = dataset.transform.get_index_of_first(_may_differ)
    return dataset.transform(dataset.data[index], end=first)


def _may_differ(step: Any) -> bool:
    """Whether a step is the first one not to be cached, as MONAI's data sets decide it."""
    return isinstance(step, RandomizableTrait) or not isinstance(step, Transform)


def _plain(value: Any) -> Any:
    """The same with what ``weights_only`` reads: tensors and plain values, no arrays of a header, no enums of MONAI."""
    if isinstance(value, MetaTensor):
        plain = MetaTensor(value.as_tensor(), affine=value.affine)
        plain.meta = _plain(value.meta)
        plain.applied_operations = _plain(value.applied_operations)
        return plain
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, enum.Enum):
        return value.value  # MONAI's are words, and equal to them
    if isinstance(value, (np.ndarray, np.generic)):
        if value.ndim == 0 or value.dtype.kind not in "biuf":
            return value.tolist()
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    return value


def _state_of(case: dict[str, Any]) -> dict[str, Any]:
    """The values of a case, and the state of the files among them."""
    return {key: (value, file_state(value) if isinstance(value, str) else None) for key, value in case.items()}
