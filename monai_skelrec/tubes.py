"""Curves with a radius -> voxels of a label map: how phantoms are drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage
from scipy.interpolate import make_interp_spline
from scipy.spatial import cKDTree

__all__ = ["draw", "one_piece_each", "rotation"]


def draw(tubes: Mapping[int, tuple[np.ndarray, np.ndarray]], shape: tuple[int, ...], spacing: float) -> np.ndarray:
    """Voxels within a radius of smooth curves; where two tubes meet, a voxel belongs to the one it lies deeper in.

    Args:
        tubes: label value -> control points in mm, shape (n, 3), and radius in mm at the start and at the end.
        shape: voxels.
        spacing: mm.
    """
    label = np.zeros(shape, dtype=np.uint8)
    depth = np.full(shape, np.inf)  # distance over radius, of the tube that owns the voxel
    for value, (points, radii) in tubes.items():
        curve, radius = _sample(points, radii, step=spacing / 4)
        low = np.floor((curve.min(0) - radius.max()) / spacing).astype(int).clip(0)
        high = np.ceil((curve.max(0) + radius.max()) / spacing).astype(int) + 1
        window = tuple(slice(a, b) for a, b in zip(low, np.minimum(high, shape)))
        if any(s.start >= s.stop for s in window):
            continue
        passed = np.rint(curve / spacing).astype(int)
        near = _around(passed, radius.max() / spacing + 1)
        near = near[((near >= low) & (near < np.minimum(high, shape))).all(1)]
        distance, nearest = cKDTree(curve).query(near * spacing, distance_upper_bound=radius.max())
        reached = np.isfinite(distance)
        relative: np.ndarray = np.full(depth[window].shape, np.inf)
        relative[tuple((near[reached] - low).T)] = distance[reached] / radius[nearest[reached]]
        # the voxels that the curve passes through: without them a tube thinner than a voxel falls apart
        passed = passed[((passed >= 0) & (passed < shape)).all(1)] - low
        relative[tuple(passed.T)] = np.minimum(relative[tuple(passed.T)], 0.99)
        won = (relative < 1) & (relative < depth[window])
        label[window][won] = value
        depth[window][won] = relative[won]
    return label


def _around(voxels: np.ndarray, reach: float) -> np.ndarray:
    """The voxels within ``reach`` of some voxels, (n, 3), each once; a box around a long curve holds many more."""
    steps = np.arange(-int(reach), int(reach) + 1)
    ball = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    ball = ball[(ball**2).sum(1) <= reach**2]
    near = np.unique(voxels, axis=0)[:, None] + ball
    return np.unique(near.reshape(-1, 3), axis=0)


def one_piece_each(label: np.ndarray) -> np.ndarray:
    """Where a tube cuts a piece off another one, the piece goes to the tube that it touches most."""
    touching = np.ones((3, 3, 3))
    for value in np.unique(label[label > 0]):
        pieces, count = ndimage.label(label == value, touching)
        sizes = np.bincount(pieces.ravel())[1:]
        for piece in set(range(1, count + 1)) - {int(sizes.argmax()) + 1}:
            around = label[ndimage.binary_dilation(pieces == piece, touching) & (pieces != piece)]
            label[pieces == piece] = np.bincount(around[around > 0], minlength=1).argmax()
    return label


def _sample(points: np.ndarray, radii: np.ndarray, *, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Points along a smooth curve through ``points``, closer than ``step``, and the radius at each."""
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    spline = make_interp_spline(at, points, k=min(3, len(points) - 1))
    fine = np.linspace(0, at[-1], int(2 * at[-1] / step) + 2)
    return spline(fine), np.interp(fine, [0, at[-1]], radii)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation about x, then y, then z; radians."""
    (a, b, c), (x, y, z) = np.cos(angles), np.sin(angles)
    about_x = np.asarray([[1, 0, 0], [0, a, -x], [0, x, a]])
    about_y = np.asarray([[b, 0, y], [0, 1, 0], [-y, 0, b]])
    about_z = np.asarray([[c, -z, 0], [z, c, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
