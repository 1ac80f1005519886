"""Voxels -> voxels of their skeleton: scikit-image's result, at a cost that grows with the voxels and not the volume.

scikit-image scans the whole array six times a layer. Here each scan visits the voxels that are left, many at a time. A
voxel's 26 neighbours are read as two numbers of 17 bits: the 8 neighbours in its own slice with the 9 in the slice
below, and the same 8 with the 9 above. Tables over 17 bits then answer the two questions of the method: does the Euler
number stay, and do the neighbours hang together without the voxel.

T.-C. Lee, R. L. Kashyap, C.-N. Chu: Building skeleton models via 3-D medial surface/axis thinning algorithms, CVGIP:
Graphical Models and Image Processing 56(6), 1994.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from skimage.morphology import skeletonize

from .voxels import Voxels

__all__ = ["thin"]

_NEIGHBOURS = np.array([offset for offset in product((-1, 0, 1), repeat=3) if any(offset)])
_HALF: list[tuple[int, ...]] = [offset for offset in product((0,), (-1, 0, 1), (-1, 0, 1)) if any(offset)]
_HALF += product((1,), (-1, 0, 1), (-1, 0, 1))
# rows: below, above, number of neighbours
_CODE = np.zeros((3, 26), np.float32)
_CODE[2] = 1
for _index, (_slice, _row, _column) in enumerate(_NEIGHBOURS.tolist()):
    for _side in (0, 1) if _slice == 0 else ((_slice + 1) // 2,):
        _CODE[_side, _index] = 1 << _HALF.index((abs(_slice), _row, _column))
# scikit-image's order: faces towards lower rows, higher rows, higher columns, lower columns, higher and lower slices
_FACES = np.array([(0, -1, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0)])
# of the 26 neighbours, scikit-image visits the first 13 before the voxel and the others after it
_EARLIER, _LATER = slice(0, 13), slice(13, 26)
# voxels handled at a time, so that their neighbourhoods stay in the processor's cache
_CHUNK = 4096


def thin(voxels: Voxels, part: np.ndarray) -> tuple[np.ndarray, bool]:
    """Thin every part on its own, as scikit-image's ``skeletonize`` does (2D: Zhang and Suen; 3D: Lee).

    Args:
        voxels: n voxels.
        part: (n,) integers.

    Returns:
        (n,) booleans, true on the skeleton, and whether it is certain that no connected component vanished.
    """
    if voxels.keys.size == 0:
        return np.zeros(0, bool), True
    if len(voxels.shape) == 3 and _agrees():
        return _thin_list(voxels, part)
    return _thin_boxes(voxels, part), False


@lru_cache(None)
def _agrees() -> bool:
    # should another version of scikit-image thin differently, its own result is the one to give
    generator = np.random.default_rng(0)
    masks = [generator.random((9, 12, 15)) < density for density in (0.2, 0.5, 0.8, 0.95)]
    for mask in [*masks, np.ones((4, 5, 12), bool), np.ones((6, 8, 4), bool)]:
        voxels = Voxels.of(mask)
        kept, _ = _thin_list(voxels, np.zeros(voxels.keys.size, np.int64))
        if not np.array_equal(skeletonize(mask)[tuple(voxels.coordinates)] > 0, kept):
            return False
    return True


def _thin_boxes(voxels: Voxels, part: np.ndarray) -> np.ndarray:
    kept = np.zeros(part.size, bool)
    order = np.argsort(part, kind="stable")
    for chosen in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        local = voxels.coordinates[:, chosen]
        local = local - local.min(axis=1, keepdims=True)
        shape = local.max(axis=1) + 1
        # scikit-image leaves out two faces of a volume that is one slice thick, not of a thin object in a thick one
        shape[0] += int(voxels.shape[0] > 1)
        box = np.zeros(shape, bool)
        box[tuple(local)] = True
        kept[chosen] = skeletonize(box)[tuple(local)] > 0
    return kept


def _thin_list(voxels: Voxels, part: np.ndarray) -> tuple[np.ndarray, bool]:
    euler, group, connected = _tables()
    # both volumes hold numbers at voxels only; memory that is never touched costs nothing
    local = voxels.coordinates - voxels.coordinates.min(axis=1, keepdims=True) + 1
    extent = local.max(axis=1) + 2
    axes = np.argsort(-voxels.steps)
    steps = np.ones(3, np.int64)
    steps[axes[:-1]] = np.cumprod(extent[axes[:0:-1]])[::-1]
    keys = steps @ local
    names = np.unique(part)
    volume = np.zeros(extent.prod(), np.min_scalar_type(names.size))
    doomed = np.zeros_like(volume)
    volume[keys] = np.searchsorted(names, part) + 1
    neighbours = (_NEIGHBOURS @ steps)[:, np.newaxis]
    faces = (_FACES if voxels.shape[0] > 1 else _FACES[:4]) @ steps
    kept = np.ones(keys.size, bool)
    index = np.arange(keys.size)
    complete = changed = True
    while changed:
        changed = False
        for face in faces:
            at = keys[index]
            border = index[kept[index] & (volume[at + face] != volume[at])]
            found = []
            for start in range(0, border.size, _CHUNK):
                some = border[start : start + _CHUNK]
                at = keys[some]
                same = (volume[neighbours + at] == volume[at]).astype(np.float32)
                below, above, number = (_CODE @ same).astype(np.int32)
                simple = np.flatnonzero((number != 1) & (euler[below] + euler[above] == 0))
                simple = simple[connected[group[below[simple]], group[above[simple]]]]
                found.append(np.stack([some[simple], below[simple], above[simple]]))
            candidates, *code = np.concatenate(found, axis=1) if found else np.zeros((3, 0), np.int64)
            if candidates.size == 0:
                continue
            deleted, alone = _recheck(keys[candidates], np.stack(code), volume, doomed, neighbours)
            volume[keys[candidates[deleted]]] = 0
            kept[candidates[deleted]] = False
            changed |= bool(deleted.any())
            complete &= not alone
        index = index[kept[index]]
    return kept, complete


def _recheck(
    keys: np.ndarray, code: np.ndarray, volume: np.ndarray, doomed: np.ndarray, neighbours: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Delete candidates one after the other, each only if its remaining neighbours hang together without it.

    A candidate's fate depends on earlier ones only, so guessing that all are deleted and correcting the guesses until
    none changes gives what going through them one by one gives.

    Returns:
        (n,) booleans, true where deleted, and whether one was deleted that had no neighbour left.
    """
    _, group, connected = _tables()
    own = volume[keys]
    deleted = np.ones(keys.size, bool)
    left = np.empty_like(code)
    doomed[keys] = own
    doubtful = np.arange(keys.size)
    while doubtful.size:
        wrong = []
        for start in range(0, doubtful.size, _CHUNK):
            some = doubtful[start : start + _CHUNK]
            gone = (doomed[neighbours[_EARLIER] + keys[some]] == own[some]).astype(np.float32)
            left[:, some] = code[:, some] - (_CODE[:2, _EARLIER] @ gone).astype(np.int64)
            wrong.append(some[connected[group[left[0, some]], group[left[1, some]]] != deleted[some]])
        changed = np.concatenate(wrong)
        deleted[changed] ^= True
        doomed[keys[changed]] = np.where(deleted[changed], own[changed], 0)
        touched = (keys[changed] + neighbours[_LATER]).ravel()
        position = np.minimum(np.searchsorted(keys, touched), keys.size - 1)
        doubtful = np.unique(position[keys[position] == touched])
    doomed[keys] = 0
    return deleted, bool((deleted & (left.sum(axis=0) == 0)).any())


@lru_cache(None)
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tables over the 17 bits of ``_HALF``.

    Returns:
        ``euler``: twice the change of the Euler number, cells of the middle slice counted half; 0 for both halves
        together means that deleting the voxel keeps the Euler number.
        ``group``: how the half connects the ring (bits 0-7), as a number below 96.
        ``connected``: (96, 96) booleans, true when halves of these two groups make at most one component.
    """
    code = np.arange(1 << 17)
    position = {offset: index for index, offset in enumerate(_HALF)}
    # a vertex, edge or face of the voxel's cube disappears with it unless a neighbour shares it
    euler = np.full(code.size, -1, np.int8)
    for cell in product((0, 1), (-1, 0, 1), (-1, 0, 1)):
        shared = sum(1 << position[offset] for offset in product(*({0, along} for along in cell)) if any(offset))
        if shared:
            free = (code & shared) == 0
            weight = (2 if cell[0] else 1) * (-1) ** (1 + sum(map(abs, cell)))
            euler += (weight * free).astype(np.int8)

    place = np.array(_HALF)
    touch = (np.abs(place[:, np.newaxis] - place).max(axis=-1) <= 1) @ (1 << np.arange(17))
    spread_ring, spread_slice = np.zeros(256, np.int64), np.zeros(512, np.int64)
    for bit in range(17):
        table, shift = (spread_ring, bit) if bit < 8 else (spread_slice, bit - 8)
        table |= np.where((np.arange(table.size) >> shift) & 1, touch[bit], 0)

    def grow(seed: np.ndarray, inside: np.ndarray) -> np.ndarray:
        grown = (spread_ring[seed & 255] | spread_slice[seed >> 8]) & inside
        while not np.array_equal(grown, seed):
            seed, grown = grown, (spread_ring[grown & 255] | spread_slice[grown >> 8]) & inside
        return grown

    def split(inside: np.ndarray) -> list[np.ndarray]:
        # 26-neighbours in one layer, or on the ring, make at most four components
        pieces = []
        for _ in range(4):
            pieces.append(grow(inside & -inside, inside))
            inside = inside & ~pieces[-1]
        return pieces

    ring = [piece[code & 255] for piece in split(np.arange(256))]
    joined = [grow(piece, code) for piece in ring]
    relation = sum(((one & other) != 0) << (4 * i + j) for i, one in enumerate(joined) for j, other in enumerate(ring))
    rest = code & ~(joined[0] | joined[1] | joined[2] | joined[3])
    apart = np.minimum(sum((piece != 0).astype(np.int64) for piece in split(rest)), 2)
    relations, number = np.unique(relation, return_inverse=True)
    group = 32 * apart + number

    matrix = ((relations[:, np.newaxis] >> np.arange(16)) & 1).reshape(-1, 4, 4)
    both = matrix[:, np.newaxis] | matrix
    for _ in range(2):  # paths of up to four pieces
        both = np.minimum(both @ both, 1)
    # a piece is counted where it is not joined to one of a lower number
    counted = np.diagonal(both, axis1=-2, axis2=-1).astype(bool) & ~np.tril(both, -1).any(axis=-1)
    pieces = counted.sum(axis=-1)
    connected = np.zeros((96, 96), bool)
    for below, above in product(range(3), repeat=2):
        block = connected[32 * below : 32 * below + relations.size, 32 * above : 32 * above + relations.size]
        block[:] = (pieces + below + above) <= 1
    return euler, group, connected
