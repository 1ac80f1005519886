"""Masks -> their skeletons with the same components, loops and cavities, thinned in parallel on any device."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["thin"]

# The 26 neighbours of a voxel: those that share a face, an edge, a corner with it. Faces 2a and 2a + 1 lie on axis a.
_FACES = tuple(tuple(sign if i == axis else 0 for i in range(3)) for axis in range(3) for sign in (-1, 1))
_EDGE_FACES = tuple(pair for pair in itertools.combinations(range(6), 2) if pair[0] // 2 != pair[1] // 2)
_CORNER_FACES = tuple(itertools.product((0, 1), (2, 3), (4, 5)))
_NEIGHBOURS = (
    *_FACES,
    *(tuple(int(x) for x in np.sum([_FACES[f] for f in faces], 0)) for faces in (*_EDGE_FACES, *_CORNER_FACES)),
)


def thin(mask: torch.Tensor, iterations: int) -> torch.Tensor:
    r"""Peel the surface off a mask, ``iterations`` times, and never change its topology.

    Each iteration looks at the voxels that have a face in the background when it begins. It visits eight subfields
    (parity of each coordinate) one after the other, in each of which no two voxels are neighbours, so that all its
    simple points go at once. Ends of lines stay: voxels with at most one neighbour left.

    A voxel is simple (26-connected foreground, 6-connected background; in 2D 8 and 4) if removing it changes neither
    components nor loops nor cavities. With the background of its neighbourhood as a complex :math:`K` on the surface
    of an octahedron - a vertex for each background face neighbour, an edge for two of them with the edge neighbour
    between, a triangle for three with all between - the voxel is simple if and only if :math:`K` is connected and its
    Euler characteristic is 1: a connected part of a sphere with that number has no hole and is not the sphere.

    Args:
        mask: True inside, shape (M, H, W[, D]); beyond its border is background.
        iterations: layers to peel off; at least half the thickness for a skeleton one voxel wide.

    Returns:
        Shape and device of ``mask``, boolean.
    """
    flat = mask.ndim == 3
    padded = F.pad(mask.unsqueeze(-1) if flat else mask, [1] * 6)
    shape, x = padded.shape, padded.to(torch.uint8).contiguous().view(-1)
    steps = torch.tensor(_NEIGHBOURS, device=x.device) @ torch.tensor([shape[2] * shape[3], shape[3], 1]).to(x.device)
    # all of a flat mask has background above and below: only its own plane tells what lies at the surface
    faces = steps[: 4 if flat else 6]
    inside = x.nonzero()[:, 0]
    d, w, h = inside % shape[3], inside // shape[3] % shape[2], inside // (shape[2] * shape[3]) % shape[1]
    subfield = h % 2 * 4 + w % 2 * 2 + d % 2
    for _ in range(iterations):
        surface = (x[inside[:, None] + faces] == 0).any(1)
        layer, parity = inside[surface], subfield[surface]
        for one in range(8):
            chosen = layer[parity == one]
            around = x[chosen[:, None] + steps]
            # no two of them are neighbours, so none is simple for another's sake
            x[chosen[(around.sum(1) > 1) & _simple(around)]] = 0
        left = x[inside] == 1
        if left.all():
            break
        inside, subfield = inside[left], subfield[left]
    thinned = x.view(shape)[:, 1:-1, 1:-1, 1:-1] == 1
    return thinned[..., 0] if flat else thinned


def _simple(around: torch.Tensor) -> torch.Tensor:
    """Whether each voxel may go, from its 26 neighbours in the order of ``_NEIGHBOURS``, shape (n, 26)."""
    connected, vertices_less_edges, triangles, ones = _tables(around.device)
    background = 1 - around.long()
    powers = 2 ** torch.arange(18, device=around.device)
    surface = (background[:, :18] * powers).sum(1)
    corners = (background[:, 18:] * powers[:8]).sum(1)
    euler = vertices_less_edges[surface] + ones[triangles[surface] & corners]
    return connected[surface] & (euler == 1)


@functools.cache
def _tables(device: torch.device) -> tuple[torch.Tensor, ...]:
    """For each of the 2**18 backgrounds at faces and edges: whether connected, vertices - edges, triangles as bits.

    Last, the number of ones of a byte.
    """
    bits = (np.arange(2**18)[:, None] >> np.arange(18)) & 1 == 1
    vertices = bits[:, :6]
    edges = np.stack([bits[:, 6 + i] & vertices[:, a] & vertices[:, b] for i, (a, b) in enumerate(_EDGE_FACES)], 1)
    # from the first vertex along the edges; no way is longer than five
    reached = vertices & (vertices.cumsum(1) == 1)
    for _ in range(5):
        for edge, (a, b) in zip(edges.T, _EDGE_FACES):
            step = edge & (reached[:, a] | reached[:, b])
            reached[:, a] |= step
            reached[:, b] |= step
    connected = vertices.any(1) & (reached == vertices).all(1)
    triangles = np.zeros(2**18, np.int64)
    for i, corner in enumerate(_CORNER_FACES):
        sides = [_EDGE_FACES.index(pair) for pair in itertools.combinations(corner, 2)]
        triangles |= edges[:, sides].all(1).astype(np.int64) << i
    ones = np.array([byte.bit_count() for byte in range(256)])
    tables = (connected, vertices.sum(1) - edges.sum(1), triangles, ones)
    return tuple(torch.from_numpy(table).to(device) for table in tables)
