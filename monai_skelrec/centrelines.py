"""Component that thinning deleted -> a centreline of its own, one voxel wide."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage
from skimage.graph import MCP, MCP_Geometric

from .voxels import Voxels

__all__ = ["centreline", "restore"]


def restore(voxels: Voxels, component: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Give every component that has no voxel in ``kept`` a centreline.

    Args:
        voxels: n voxels.
        component: (n,) component numbers from 0, as :py:func:`monai_skelrec.voxels.connect` gives.
        kept: (n,) booleans, true on the skeleton.

    Returns:
        (n,) booleans, true on the new centrelines only.
    """
    restored = np.zeros(component.size, bool)
    bare = np.ones(component.max(initial=-1) + 1, bool)
    bare[component[kept]] = False
    lost = np.flatnonzero(bare[component])
    lost = lost[np.argsort(component[lost], kind="stable")]
    for chosen in np.split(lost, np.flatnonzero(np.diff(component[lost])) + 1):
        if chosen.size:
            local = voxels.coordinates[:, chosen]
            local = local - local.min(axis=1, keepdims=True)
            box = np.zeros(local.max(axis=1) + 1, bool)
            box[tuple(local)] = True
            line = _remembered(box.shape, box.tobytes()) if box.size <= 1000 else centreline(box)
            restored[chosen] = line[tuple(local)]
    return restored


# thinning deletes the same few tiny shapes again and again, hundreds in a noisy mask
@lru_cache(4096)
def _remembered(shape: tuple[int, ...], voxels: bytes) -> np.ndarray:
    return centreline(np.frombuffer(voxels, bool).reshape(shape))


def centreline(component: np.ndarray) -> np.ndarray:
    """Draw a line one voxel wide through a component, from end to end, as near to its ridge as it can stay.

    The ends are the two voxels the most steps apart (a step goes to any of 26 neighbours, 8 in 2D); among equals the
    middle one, so that the line of a bar ends in the middle of its faces. An arm that reaches more than
    2 (inradius + 1) steps away from the line gets a branch. Turned or mirrored, the line of a component has the same
    number of voxels up to one and lies within 2 (inradius + 1), unless arms of equal length compete for being an end.

    Args:
        component: booleans, (H, W) or (H, W, D), exactly one connected component.

    Returns:
        Booleans of the same shape.
    """
    component = np.pad(component, 1)
    depth = ndimage.distance_transform_edt(component)
    # a negative cost bars the way
    steps = MCP(np.where(component, 1.0, -1.0))
    ridge = MCP_Geometric(np.where(component, 1 + (depth.max() - depth) ** 2, -1.0))

    def farthest(starts: list[tuple[int, ...]]) -> tuple[np.ndarray, float]:
        count = np.where(component, steps.find_costs(starts)[0], 0)
        return np.argwhere(count == count.max()), float(count.max()) - 1

    def outermost(places: np.ndarray, origin: np.ndarray) -> tuple[int, ...]:
        return tuple(places[np.argmax(((places - origin) ** 2).sum(axis=1))].tolist())

    def middle(places: np.ndarray) -> tuple[int, ...]:
        return tuple(places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))].tolist())

    everywhere = np.argwhere(component)
    start = outermost(everywhere, everywhere.mean(axis=0))
    ends, reached = farthest([start])
    longest = -1.0
    while reached > longest:
        longest = reached
        start = outermost(ends, np.array(start))
        ends, reached = farthest([start])
    line = [middle(farthest([middle(ends)])[0])]
    tolerance = 0.0
    ends, reached = farthest(line)
    while reached > tolerance:
        end = middle(ends)
        ridge.find_costs(line, [end])
        line += ridge.traceback(end)
        tolerance = 2 * (float(depth.max()) + 1)
        ends, reached = farthest(line)
    drawn = np.zeros_like(component)
    drawn[tuple(np.transpose(line))] = True
    return drawn[(slice(1, -1),) * drawn.ndim]
