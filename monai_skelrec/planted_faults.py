"""Label map -> what a faulty network might say of it: probabilities with breaks, decoys and strays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .skeletons import skeleton

__all__ = ["Planted", "plant_faults"]

# what the network says where it is sure, and what it leaves for every other class
_SURE, _REST = 0.95, 0.01
# share of a class that has lost a voxel, and still leaves a trace
_TRACE = (0.05, 0.45)
_LONGEST_DECOY = 8


@dataclass(frozen=True)
class Planted:
    """A label map and what a faulty network says of it.

    Attributes:
        reference: class indices, shape (H, W, D).
        probabilities: shape (C, H, W, D), each voxel's sum is 1.
    """

    reference: np.ndarray
    probabilities: np.ndarray

    @property
    def label(self) -> np.ndarray:
        """The most probable class of each voxel."""
        return self.probabilities.argmax(axis=0).astype(np.uint8)


def plant_faults(
    reference: np.ndarray, classes: int, seed: int, *, breaks: int = 6, decoys: int = 6, strays: int = 0
) -> Planted:
    """Make probabilities with faults.

    A break is a ball of 1.5 to 3 voxels around a random voxel of a class's centreline, in which the class keeps 0.05 to
    0.45 and background gets the rest. A decoy is a straight line of up to 8 voxels through background, between two
    voxels of the foreground, on which the class at one end has 0.05 to 0.45. A stray is a ball of 1.5 to 2.5 voxels
    around a voxel of the foreground or near it that another class of the map has won.

    Args:
        reference: class indices, shape (H, W, D), not empty.
        classes: number of classes, background included.
        seed: other seeds, other places.
        breaks: number of breaks.
        decoys: number of decoys.
        strays: number of strays.
    """
    rng = np.random.default_rng([seed, 7])
    score = np.stack([_SURE * (reference == index) for index in range(classes)]).astype(np.float32)
    # softer towards the surface, and uneven
    score = 0.6 * score + 0.4 * ndimage.gaussian_filter(score, (0, 1, 1, 1))
    score *= np.exp(0.1 * ndimage.gaussian_filter(rng.normal(size=score.shape), (0, 1, 1, 1)))
    score += _REST
    present = np.unique(reference[reference > 0]).tolist()
    foreground = np.argwhere(reference > 0)

    for _ in range(decoys):
        path = _decoy(reference, foreground, rng)
        if path is not None:
            _set(score, path, int(reference[tuple(path[0])]), rng.uniform(*_TRACE), only=reference == 0)
    for _ in range(breaks):
        index = int(rng.choice(present))
        line = np.argwhere(skeleton(reference == index))
        ball = _ball(line[rng.integers(len(line))], rng.uniform(1.5, 3), reference.shape)
        _set(score, ball, index, rng.uniform(*_TRACE), only=reference == index)
    for _ in range(strays):
        centre = foreground[rng.integers(len(foreground))] + rng.integers(-3, 4, 3)
        ball = _ball(centre, rng.uniform(1.5, 2.5), reference.shape)
        index = int(rng.choice(present))
        _set(score, ball, index, _SURE, only=reference != index)
    return Planted(reference, score / score.sum(axis=0))


def _set(score: np.ndarray, places: np.ndarray, index: int, share: float, *, only: np.ndarray) -> None:
    """A class gets a share of some voxels, background the rest."""
    places = places[only[tuple(places.T)]]
    at = tuple(places.T)
    score[(slice(None), *at)] = _REST
    score[(0, *at)] = 1 - share
    score[(index, *at)] = share


def _ball(centre: np.ndarray, radius: float, shape: Sequence[int]) -> np.ndarray:
    steps = np.arange(-int(radius), int(radius) + 1)
    ball = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    near = centre + ball[(ball**2).sum(axis=1) <= radius**2]
    return near[((near >= 0) & (near < shape)).all(axis=1)]


def _decoy(reference: np.ndarray, foreground: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A line from voxel to voxel of the foreground with background between, or None where none was met."""
    for _ in range(500):
        one = foreground[rng.integers(len(foreground))]
        near = foreground[(((foreground - one) ** 2).sum(axis=1) <= _LONGEST_DECOY**2)]
        other = near[rng.integers(len(near))]
        line = np.unique(np.rint(np.linspace(one, other, 4 * _LONGEST_DECOY)).astype(int), axis=0)
        line = line[np.argsort(((line - one) ** 2).sum(axis=1))]
        if np.count_nonzero(reference[tuple(line[1:-1].T)]) == 0 and len(line) >= 5:
            return line
    return None
