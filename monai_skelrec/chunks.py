"""A batch, a chunk of voxels at a time: how the fused loss reads logits, label and tubed skeleton.

In a chunk, a label or a tube is a list of (class, voxel) pairs: one pair a voxel for class indices, one a positive
entry for multi-hot channels. Neither is ever expanded to one channel per class.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

__all__ = ["Chunk", "Pairs", "Voxels", "term_dtype"]

_T = TypeVar("_T")

# Bytes of the probabilities of a chunk with the numbers per voxel that go with them; about four times as much is held
# at once, on a CPU by each thread. Smaller chunks stay in a nearer cache but cost more calls.
CHUNK_BYTES = 2**22
# On a GPU each call takes microseconds, whatever its size: there, fewer and larger ones.
GPU_CHUNK_BYTES = 2**26

# Numbers in a tensor that PyTorch itself does not split over threads.
SERIAL_SIZE = 2**15


class Pairs(NamedTuple):
    """The positive entries of a label or a tube in a chunk."""

    classes: torch.Tensor
    voxels: torch.Tensor
    entries: torch.Tensor  # position in the flattened (N, voxels) block
    every: bool = False  # whether each voxel has exactly one entry, in order

    @property
    def where(self) -> torch.Tensor | slice:
        """The voxels, without a copy where that is all of them."""
        return slice(None) if self.every else self.voxels


class Chunk(NamedTuple):
    """Some voxels of one item, with two blocks of the shape of the logits to write to."""

    item: int
    span: slice
    logits: torch.Tensor  # (N, voxels)
    keep: torch.Tensor | None  # (voxels,), False where ignored; None where nothing can be
    label: Pairs
    tube: Pairs
    blocks: tuple[torch.Tensor, ...]


class Voxels:
    """Logits, label and tube of a batch, read chunk by chunk in the order in which the logits lie in memory."""

    def __init__(
        self,
        input: torch.Tensor,
        label: torch.Tensor,
        tube: torch.Tensor,
        order: list[int],
        ignore_index: int | None,
        check: bool = True,
    ) -> None:
        self.order = order
        self.ignore_index = ignore_index
        self.check = check
        self.logits, self.label, self.tube = self.rows(input), self.rows(label), self.rows(tube)
        self.n_classes = input.shape[1]
        self.multi_hot = label.shape[1] == self.n_classes
        self.dtype = term_dtype(input)

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, N, voxels); a view for the logits and their gradient."""
        return x.permute(0, 1, *self.order).flatten(2)

    def map(self, work: Callable[[Chunk], _T]) -> list[_T]:
        """Results of ``work`` on each chunk, in order; on a CPU as many chunks at once as PyTorch has threads.

        In threads of our own, each with PyTorch's own threading off: a chunk is thousands of times smaller than a
        tensor, and joining all cores after each operation on it costs seconds where cores are shared, as with data
        loading.
        """
        n_items, n_classes, n_voxels = self.logits.shape
        on_cpu = self.logits.device.type == "cpu"
        threads = torch.get_num_threads() if on_cpu and self.logits.numel() >= SERIAL_SIZE else 1
        size = CHUNK_BYTES if on_cpu else GPU_CHUNK_BYTES
        # pairs and other numbers per voxel weigh as much as some 16 classes
        step = max(1, min(size // (4 * (n_classes + 16)), n_items * n_voxels // threads))
        spans = [(item, slice(start, start + step)) for item in range(n_items) for start in range(0, n_voxels, step)]
        results: dict[int, _T] = {}
        queue = enumerate(spans)  # shared: whoever is done takes the next

        def serve() -> None:
            scratch = self.logits.new_empty(2, n_classes * min(step, n_voxels), dtype=self.dtype)
            count = torch.arange(min(step, n_voxels), device=self.logits.device)
            for index, (item, span) in queue:
                results[index] = work(self._chunk(item, span, scratch, count))

        def serve_alone() -> None:
            torch.set_num_threads(1)
            try:
                with torch.no_grad():
                    serve()
            finally:
                torch.set_num_threads(threads)

        if threads == 1:
            serve()
        else:
            with ThreadPoolExecutor(threads) as pool:
                for served in [pool.submit(serve_alone) for _ in range(threads)]:
                    served.result()
        return [results[index] for index in range(len(spans))]

    def _chunk(self, item: int, span: slice, scratch: torch.Tensor, count: torch.Tensor) -> Chunk:
        logits, label, tube = (x[item, :, span] for x in (self.logits, self.label, self.tube))
        keep = None if self.ignore_index is None else (label != self.ignore_index).all(0)
        every = count[: logits.shape[1]]
        return Chunk(
            item,
            span,
            logits,
            keep,
            self._pairs("label", label, every, keep, with_background=True),
            self._pairs("tubed skeleton", tube, every, keep, with_background=False),
            tuple(scratch[:, : logits.numel()].view(2, *logits.shape)),
        )

    def _pairs(
        self, name: str, values: torch.Tensor, every: torch.Tensor, keep: torch.Tensor | None, with_background: bool
    ) -> Pairs:
        if len(values) == self.n_classes:
            positive = values != 0 if keep is None else (values != 0) & keep
            classes, voxels = positive.nonzero(as_tuple=True)
            if self.check and (values[classes, voxels] != 1).any():
                raise ValueError(f"{name} must be 0 or 1 in each of its {self.n_classes} channels, got other values.")
            return Pairs(classes, voxels, classes * len(every) + voxels)
        index = values[0]
        if with_background and keep is None:
            classes = self._classes(name, index)
            return Pairs(classes, every, (classes * len(every)).add_(every), every=True)
        # a label takes part where it is kept, a tube where it also has a class
        wanted = index if keep is None else keep if with_background else (index != 0) & keep
        voxels = wanted.nonzero()[:, 0]
        classes = self._classes(name, index[voxels])
        return Pairs(classes, voxels, classes * len(every) + voxels)

    def _classes(self, name: str, index: torch.Tensor) -> torch.Tensor:
        classes = index.long()
        if self.check and len(classes) > 0:
            low, high = classes.aminmax()
            whole = not index.is_floating_point() or torch.equal(classes.to(index.dtype), index)
            if low < 0 or high >= self.n_classes or not whole:
                raise ValueError(
                    f"{name} must hold whole class indices from 0 to {self.n_classes - 1}"
                    f"{'' if self.ignore_index is None else f' or ignore_index={self.ignore_index}'}, "
                    f"got values from {index.min().item():g} to {index.max().item():g}."
                )
        return classes


def term_dtype(input: torch.Tensor) -> torch.dtype:
    """What sums over logits are held and returned in: float32 for half precision."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32
