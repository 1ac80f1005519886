"""Step "probabilities -> label map", a repair: fragments of a tube are joined where the probabilities lead on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.graph import MCP_Geometric

from .centerline_graphs import centerline_graph, inscribed_radii
from .skeletons import skeleton

__all__ = ["Link", "find_links", "reconnect"]

# a probability of 0 bars no way, it is only dear
_LEAST = 1e-6


@dataclass(frozen=True)
class Link:
    """A way from the end of one fragment of a class to another fragment.

    Attributes:
        index: of the class.
        fragments: numbers of the two fragments within the class, from 1.
        path: array indices from the first fragment's end to the second's centreline, shape (n, dimensions).
        radii: of the tube along the path, in the unit of the spacing, shape (n,).
        gap: length of the path outside the class, in the unit of the spacing.
        probability: mean of the class's probability along that part.
    """

    index: int
    fragments: tuple[int, int]
    path: np.ndarray
    radii: np.ndarray
    gap: float
    probability: float


def reconnect(
    label: np.ndarray,
    probabilities: np.ndarray,
    *,
    max_gap: float,
    min_probability: float = 0.15,
    spacing: Sequence[float] | None = None,
    classes: Sequence[int] | None = None,
) -> tuple[np.ndarray, list[Link]]:
    r"""Join the fragments of each class along paths of least cost through :math:`-\log p`.

    Of all links that :py:func:`find_links` finds within the budget, the most probable is drawn first; a link whose
    fragments hang together already is left out, so n fragments get n - 1 links at most and no loop is closed. A link
    is as thick as the fragment's end, and takes background voxels only.

    Args:
        label: class indices, shape (H, W) or (H, W, D).
        probabilities: of each class, shape (C, H, W[, D]), from 0 to 1.
        max_gap: the longest way outside the class, in the unit of ``spacing``.
        min_probability: the least mean probability along it. Where a class has lost against another one its
            probability is below one half.
        spacing: edges of a voxel; None for 1.
        classes: indices of the classes to be repaired; None for all.

    Returns:
        Repaired label map of the dtype of ``label``, and the links drawn.

    Raises:
        ValueError: when shapes do not fit, or ``max_gap`` or ``min_probability`` is out of range.
    """
    out = label.copy()
    drawn: list[Link] = []
    links = find_links(
        label, probabilities, max_gap=max_gap, min_probability=min_probability, spacing=spacing, classes=classes
    )
    groups: dict[tuple[int, int], int] = {}

    def group(index: int, fragment: int) -> int:
        while groups.get((index, fragment), fragment) != fragment:
            fragment = groups[index, fragment]
        return fragment

    for link in sorted(links, key=lambda link: (-link.probability, link.gap)):
        one, other = (group(link.index, fragment) for fragment in link.fragments)
        if one != other:
            groups[link.index, one] = other
            draw_link(out, link, spacing)
            drawn.append(link)
    return out, drawn


def find_links(
    label: np.ndarray,
    probabilities: np.ndarray,
    *,
    max_gap: float,
    min_probability: float = 0.15,
    spacing: Sequence[float] | None = None,
    classes: Sequence[int] | None = None,
) -> list[Link]:
    """Find the cheapest way from every end of a fragment's centreline to each other fragment near it.

    Ways lead through background and the class itself, not through other classes. See :py:func:`reconnect`.
    """
    if probabilities.shape[1:] != label.shape:
        raise ValueError(
            f"probabilities must have shape (classes, {', '.join(map(str, label.shape))}), got {probabilities.shape}."
        )
    if not max_gap > 0:
        raise ValueError(f"max_gap must be above 0, got {max_gap}.")
    if not 0 <= min_probability <= 1:
        raise ValueError(f"min_probability must lie from 0 to 1, got {min_probability}.")
    highest = int(label.max(initial=0))
    if highest >= len(probabilities):
        raise ValueError(f"label holds class {highest}, but there are probabilities of {len(probabilities)} classes.")
    size = np.ones(label.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    reach = np.ceil(max_gap / size).astype(int)
    found = []
    for index, box in enumerate(ndimage.find_objects(label) if highest else (), start=1):
        if box is None or (classes is not None and index not in classes):
            continue
        wide = tuple(slice(max(side.start - step, 0), side.stop + step) for side, step in zip(box, reach))
        offset = np.array([side.start for side in wide])
        ways = _ways(label[wide], probabilities[index][wide].astype(np.float32), index, max_gap, size)
        found += [
            Link(index, link.fragments, link.path + offset, link.radii, link.gap, link.probability)
            for link in ways
            if link.gap <= max_gap and link.probability >= min_probability
        ]
    return found


def draw_link(label: np.ndarray, link: Link, spacing: Sequence[float] | None = None) -> None:
    """Draw a link into a label map, in its place, on background voxels only."""
    size = np.ones(label.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    reach = np.ceil(link.radii.max() / size).astype(int)
    ball = np.stack(np.meshgrid(*(np.arange(-step, step + 1) for step in reach), indexing="ij"), axis=-1)
    ball = ball.reshape(-1, label.ndim)
    length = np.linalg.norm(ball * size, axis=1)
    for place, radius in zip(link.path, link.radii, strict=True):
        # the radius leads to the first voxel outside, as it was measured
        near = place + ball[(length < radius) | (length == 0)]
        near = near[((near >= 0) & (near < label.shape)).all(axis=1)]
        near = near[label[tuple(near.T)] == 0]
        label[tuple(near.T)] = link.index


def _ways(label: np.ndarray, probability: np.ndarray, index: int, max_gap: float, size: np.ndarray) -> Iterator[Link]:
    mask = label == index
    fragments, count = ndimage.label(mask, np.ones((3,) * label.ndim))
    if count < 2:
        return
    line = skeleton(mask)
    graph = centerline_graph(line)
    radii = inscribed_radii(mask, graph.points, size.tolist())
    radius_at = np.zeros(label.shape, dtype=np.float32)
    radius_at[tuple(graph.points.T)] = radii
    degree = np.bincount(graph.edges.ravel(), minlength=len(graph.points))
    is_end = np.zeros(label.shape, dtype=bool)
    is_end[tuple(graph.points[degree <= 1].T)] = True
    for end, radius in zip(graph.points[degree <= 1], radii[degree <= 1], strict=True):
        # an end of the centreline lies about one radius inside the fragment, and so does the goal
        steps = np.ceil((max_gap + 2 * radius) / size).astype(int)
        near = tuple(slice(max(at - step, 0), at + step + 1) for at, step in zip(end, steps))
        own = int(fragments[tuple(end)])
        goals = np.where(line[near], fragments[near], 0)
        others = np.setdiff1d(goals, [0, own])
        if not others.size:
            continue
        inside = label[near]
        cost = -np.log(np.clip(probability[near], _LEAST, 1.0)) + 1e-3
        cost[inside == index] = 1e-3
        cost[(inside != index) & (inside != 0)] = -1  # a negative cost bars the way
        search = MCP_Geometric(cost, sampling=tuple(size))
        corner = np.array([side.start for side in near])
        costs, _ = search.find_costs([tuple((end - corner).tolist())])
        for other in others.tolist():
            at_goal = np.where(goals == other, costs, np.inf)
            goal = np.unravel_index(np.argmin(at_goal), at_goal.shape)
            if not np.isfinite(at_goal[goal]):
                continue
            path = np.array(search.traceback(tuple(int(step) for step in goal))) + corner
            gap, mean = _gap(path, mask, probability, size)
            last = tuple(path[-1])
            # beside a vessel it would join in its middle, a link keeps its own thickness
            towards = float(radius_at[last]) if is_end[last] else float(radius)
            way = np.linspace(float(radius), towards, len(path))
            yield Link(index, (own, other), path, way, gap, mean)


def _gap(path: np.ndarray, mask: np.ndarray, probability: np.ndarray, size: np.ndarray) -> tuple[float, float]:
    """Length of the part of a path outside a mask, and the mean probability there."""
    inside = mask[tuple(path.T)]
    steps = np.linalg.norm(np.diff(path, axis=0) * size, axis=1)
    length = float(steps[~(inside[:-1] & inside[1:])].sum())
    return length, float(probability[tuple(path[~inside].T)].mean()) if not inside.all() else 1.0
