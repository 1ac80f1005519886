"""Step "label map -> scores", the mathematics: what users of vessel trees ask for beyond overlap and Betti numbers.

Lengths, radii, joined branches and confused sides, on plain NumPy arrays; breaks and bridges are found by
:py:mod:`monai_skelrec.faults`. Neighbours are 8 in 2D and 26 in 3D, and outside the array is background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from .centerline_graphs import centerline_edges, inscribed_radii
from .voxels import Voxels, connect

__all__ = ["centerline_length", "count_joined", "label_contacts", "radius_error", "side_confusion"]


def centerline_length(
    centerline: np.ndarray, where: np.ndarray | None = None, spacing: Sequence[float] | None = None
) -> float:
    r"""Length of a centreline, or of the part of it that lies in a mask.

    The centreline is a graph, see :py:func:`monai_skelrec.centerline_graphs.centerline_edges`. Each voxel carries half
    of its edges:

    .. math::
        L = \sum_{v \in W} \frac{1}{2} \sum_{\{v, u\} \in E} \lVert (v - u) \cdot spacing \rVert_2

    What lies inside a mask and what lies outside add up to the whole. A lone voxel has no length.

    Args:
        centerline: booleans one voxel wide, shape HW[D].
        where: mask :math:`W` of the part that counts; None for all.
        spacing: edges of a voxel; None for 1.

    Returns:
        Length in the unit of ``spacing``.
    """
    voxels = Voxels.of(centerline)
    counted = np.ones(voxels.keys.size, bool) if where is None else where[tuple(voxels.coordinates)]
    size = np.ones(centerline.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    one, other = centerline_edges(voxels).T
    steps = (voxels.coordinates[:, other] - voxels.coordinates[:, one]).T * size
    halves = counted[one].astype(int) + counted[other]
    return float((halves / 2 * np.linalg.norm(steps, axis=1)).sum())


def radius_error(
    pred: np.ndarray, reference: np.ndarray, centerline: np.ndarray, spacing: Sequence[float] | None = None
) -> float:
    r"""Score by how much the prediction's vessels are too thick or too thin along the reference's centreline.

    .. math::
        \frac{1}{|M|} \sum_{v \in M} |r_{pred}(v) - r_{ref}(v)|, \quad M = S_{ref} \cap V_{pred}

    with :math:`r(v)` the distance from the centre of voxel :math:`v` to that of the nearest background voxel.

    Args:
        pred: booleans, shape HW[D].
        reference: booleans of the same shape.
        centerline: of the reference.
        spacing: edges of a voxel; None for 1.

    Returns:
        Mean absolute error in the unit of ``spacing``, lower is better; NaN where no voxel matches.
    """
    points = np.argwhere(centerline & pred)
    if not len(points):
        return math.nan
    radii = [inscribed_radii(mask, points, spacing) for mask in (pred, reference)]
    return float(np.abs(radii[0] - radii[1]).mean())


def count_joined(pred: np.ndarray, reference: np.ndarray) -> int:
    r"""Count how often a prediction joins components of a reference that are apart.

    .. math::
        \sum_{p} \max(0, |\{r : p \cap r \neq \emptyset\}| - 1)

    over the components :math:`p` of the prediction and :math:`r` of the reference. Booleans, shape HW[D].
    """
    voxels = [Voxels.of(np.ascontiguousarray(mask)) for mask in (pred, reference)]
    component = [connect(each, np.zeros(each.keys.size, np.int64)) for each in voxels]
    _, *places = np.intersect1d(voxels[0].keys, voxels[1].keys, assume_unique=True, return_indices=True)
    joined = np.unique(np.stack([part[place] for part, place in zip(component, places, strict=True)]), axis=1)
    return int(joined.shape[1] - np.unique(joined[0]).size)


def label_contacts(label: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of classes, the lower first, of which some voxels are neighbours; class indices, shape HW[D]."""
    found: set[tuple[int, int]] = set()
    for offset in product((-1, 0, 1), repeat=label.ndim):
        if offset <= (0,) * label.ndim:
            continue
        here = label[tuple(slice(max(-step, 0), min(-step, 0) or None) for step in offset)]
        there = label[tuple(slice(max(step, 0), min(step, 0) or None) for step in offset)]
        touching = (here != there) & (here > 0) & (there > 0)
        pairs = np.sort(np.stack([here[touching], there[touching]]), axis=0)
        found.update(map(tuple, np.unique(pairs, axis=1).T.tolist()))
    return found


def side_confusion(pred_partner: np.ndarray, centerline: np.ndarray) -> float:
    """Share of a centreline's voxels that the prediction gives to the same structure of the other side.

    Args:
        pred_partner: booleans, where the prediction says the partner's class, shape HW[D].
        centerline: of the reference's class.

    Returns:
        Share from 0 to 1, lower is better; NaN where the reference has no centreline.
    """
    inside = pred_partner[centerline]
    return float(inside.mean()) if inside.size else math.nan
