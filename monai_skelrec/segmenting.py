"""Step "scan -> label map on its own grid" in bounded memory: prepare, run windows, carry logits back, largest wins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from .axis_maps import AxisMap, GridMap, interpolate, map_grids
from .inferers import mirrored
from .memory_plans import CHUNK, Plan, plan_memory
from .reading import Loaded
from .streaming import Windows, stream_logits

__all__ = ["Segmentation", "Segmenter"]


class Segmentation(NamedTuple):
    """What came out of one scan.

    Attributes:
        labels: class indices on the scan's grid, uint8 (uint16 for more than 256 classes), axes as the scan's.
        affine: of the scan.
        probabilities: float16, shape (C, ...) on the same grid; None unless they were asked for.
        plan: how memory was bounded.
        warnings: sentences.
    """

    labels: np.ndarray
    affine: np.ndarray
    probabilities: np.ndarray | None
    plan: Plan
    warnings: list[str]


class Segmenter:
    """Turns an image into class indices on the image's own grid, as ``inference.json`` does, in bounded memory.

    Logits are blended in a ring of one row of windows, carried to the scan's grid slice by slice, and only their
    largest is kept. The result does not depend on the bound, but for the last digits of a network that sees another
    batch of windows.

    Args:
        network: BCH[WD] -> BNH[WD], on ``windows.device``.
        windows: how it sees an image.
        classes: number of output channels, background included.
        spacing: of the network's grid in mm; None: each scan's own.
        intensity: MONAI dictionary transform of the key "image", applied on the network's grid; None: none.
        mirror_axes: test-time augmentation by flips; empty: none.
        pairs: classes that change places along axis 0, see :py:func:`monai_skelrec.sides.pair_indices`.
        max_memory_gb: bound on the arrays of one scan, see :py:class:`monai_skelrec.memory_plans.Plan`; None: no bound.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        windows: Windows,
        classes: int,
        *,
        spacing: Sequence[float] | None = None,
        intensity: Callable[[Any], Any] | None = None,
        mirror_axes: Sequence[int] = (),
        pairs: Mapping[int, int] | None = None,
        max_memory_gb: float | None = None,
    ) -> None:
        self.network = network
        self.windows = windows
        self.classes = classes
        self.spacing = spacing
        self.intensity = intensity
        self.mirror_axes = tuple(mirror_axes)
        self.pairs = pairs
        self.max_memory_gb = max_memory_gb

    def __call__(
        self, load: Callable[[], Loaded], probabilities: Callable[[tuple[int, ...]], np.ndarray] | None = None
    ) -> Segmentation:
        """
        Args:
            load: reads the scan; whoever hands over an array instead keeps it in memory to the end.
            probabilities: makes the array of the given shape that gets them, such as a file mapped into memory; None:
                they are not computed.

        Raises:
            ValueError: when the scan does not fit into ``max_memory_gb``, or the network gives NaN.
        """
        image, affine, warnings = load()
        shape = tuple(image.shape[1:])
        dims = len(shape)
        grid = map_grids(shape, affine, self.spacing, canonical=dims == 3)
        order = grid.order
        plan = plan_memory(
            [shape[source] for source in order],
            grid.shape,
            self.windows.size,
            classes=self.classes,
            channels=len(image),
            probabilities=probabilities is not None,
            max_memory_gb=self.max_memory_gb,
        )
        if grid.sheared:
            warnings = [*warnings, "its axes are not at right angles (tilted gantry?): it was taken along its own axes"]
        image = image.permute(0, *(1 + source for source in order))
        for axis, axis_map in enumerate(grid.to_network):
            image = interpolate(image, 1 + axis, axis_map)
        if self.intensity is not None:
            image = self.intensity({"image": MetaTensor(image)})["image"]
            image = image.as_tensor() if isinstance(image, MetaTensor) else image
        labels = np.zeros([shape[source] for source in order], np.uint8 if self.classes <= 256 else np.uint16)
        scores = None if probabilities is None else probabilities((self.classes, *shape))
        turned = None if scores is None else scores.transpose(0, *(1 + source for source in order))
        edges = np.linspace(0, labels.shape[plan.tile_axis], plan.tiles + 1).astype(int)
        self.network.eval()
        for low, high in zip(edges, edges[1:]):
            part = [slice(None)] * dims
            part[plan.tile_axis] = slice(int(low), int(high))
            self._fill(image, grid, plan, part, labels, turned)
        return Segmentation(labels.transpose(np.argsort(order)), affine, scores, plan, list(warnings))

    def _fill(
        self,
        image: torch.Tensor,
        grid: GridMap,
        plan: Plan,
        part: list[slice],
        labels: np.ndarray,
        scores: np.ndarray | None,
    ) -> None:
        """Write the classes of one tile of the scan, and their probabilities, as slices of logits arrive."""
        dims = image.ndim - 1
        maps = [_cut(grid.to_scan[axis], part[axis]) for axis in range(dims)]
        region = [(int(torch.minimum(each.low, each.high).min()), int(each.high.max()) + 1) for each in maps]
        others = [axis for axis in range(dims) if axis != plan.axis]
        across = [_moved(maps[axis], -region[axis][0]) for axis in others]
        along = maps[plan.axis]
        voxels = int(np.prod([len(each.low) for each in across]))
        # the scan may count against the network's direction
        waiting = torch.argsort(along.high, stable=True)
        ready = along.high[waiting].contiguous()
        last: torch.Tensor | None = None
        done = 0
        predict = mirrored(self.network, self.mirror_axes, self.pairs)
        for begin, logits in stream_logits(image, predict, self.windows, axis=plan.axis, region=region):
            end = begin + logits.shape[1]
            upto = int(torch.searchsorted(ready, end))
            chunk = max(1, CHUNK // max(1, voxels * (1 if scores is None else len(logits))))
            for first in range(done, upto, chunk):
                rows = waiting[first : min(first + chunk, upto)]
                planes = _carried(logits, last, begin, AxisMap(*(values[rows] for values in along)), across)
                place = _place(part, plan.axis, rows.numpy())
                if scores is not None:
                    whole = torch.stack(list(planes))
                    planes = iter(whole)
                    shares = torch.softmax(whole, 0).to(torch.float16).cpu().numpy()
                    scores[(slice(None), *place)] = np.moveaxis(shares, 1, 1 + plan.axis)
                labels[place] = np.moveaxis(_largest(planes, self.classes).cpu().numpy(), 0, plan.axis)
            done = upto
            last = logits[:, -1:].clone()


def _carried(
    logits: torch.Tensor, last: torch.Tensor | None, begin: int, rows: AxisMap, across: Sequence[AxisMap]
) -> Iterator[torch.Tensor]:
    """Slices of the scan's grid, one class after the other: so the work of a single class is held."""
    for number in range(len(logits)):
        one = slice(number, number + 1)
        here = _between(logits[one], None if last is None else last[one], begin, rows)
        for axis, axis_map in enumerate(across):
            here = interpolate(here, 2 + axis, axis_map)
        yield here[0]


def _largest(planes: Iterator[torch.Tensor], classes: int) -> torch.Tensor:
    """Index of the largest class, the first of several that are equal, as ``argmax`` gives it but much faster."""
    best = next(planes).clone()
    found = torch.zeros(best.shape, dtype=torch.uint8 if classes <= 256 else torch.int32, device=best.device)
    for number, plane in enumerate(planes, start=1):
        above = (plane > best).to(found.dtype)
        torch.maximum(best, plane, out=best)
        torch.maximum(found, above.mul_(number), out=found)
    if bool(best.isnan().any()):  # a maximum hands it on
        raise ValueError(
            "the network gave NaN instead of numbers: its weights are damaged, or mixed precision is too coarse for "
            "them; try amp False."
        )
    return found


def _between(logits: torch.Tensor, last: torch.Tensor | None, begin: int, rows: AxisMap) -> torch.Tensor:
    """Interpolate along the streaming axis; the slice before the piece is the last one of the piece before."""
    device = logits.device
    reach = (rows.low < begin) & (rows.weight > 0) | (rows.high < begin)
    high = _slices(logits, (rows.high - begin).clamp_(min=0))
    if not bool(rows.weight.any()) and not bool(reach.any()):
        return high
    low = _slices(logits, (rows.low - begin).clamp_(min=0))
    if last is not None and bool(reach.any()):
        low = low.clone()
        low[:, reach.to(device)] = last.expand(-1, int(reach.sum()), *last.shape[2:])
    weight = rows.weight.to(device).reshape(1, -1, *[1] * (low.ndim - 2))
    return torch.lerp(low, high, weight.expand_as(low))


def _slices(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some slices; a view where they follow each other.

    Not ``index_select``: of a view of the ring it copies the whole piece, however few slices are asked for.
    """
    first = int(rows[0])
    if torch.equal(rows, torch.arange(first, first + len(rows))):
        return logits[:, first : first + len(rows)]
    return logits[:, rows.to(logits.device)]


def _cut(axis_map: AxisMap, part: slice) -> AxisMap:
    return AxisMap(*(values[part] for values in axis_map))


def _moved(axis_map: AxisMap, by: int) -> AxisMap:
    return AxisMap(axis_map.low + by, axis_map.high + by, axis_map.weight)


def _place(part: list[slice], axis: int, rows: np.ndarray) -> tuple[Any, ...]:
    """Index of some slices of a tile; rows that follow each other become a slice, which NumPy writes faster."""
    place: list[Any] = list(part)
    start, step = int(rows[0]), int(rows[1] - rows[0]) if len(rows) > 1 else 1
    if abs(step) == 1 and (np.diff(rows) == step).all():
        stop = int(rows[-1]) + step
        place[axis] = slice(start, None if stop < 0 else stop, step)
    else:
        place[axis] = rows
    return tuple(place)
