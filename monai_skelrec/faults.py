"""Step "label maps -> scores": where a prediction breaks a reference, invents, or joins what the reference keeps apart.

Plain boolean arrays; 8 neighbours in 2D, 26 in 3D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .mask_scores import bounding_box
from .skeletons import skeleton

__all__ = ["Faults", "find_faults", "mask_faults"]

# how far beside a gap a detour may run that still connects its two ends, in voxels
_DETOUR = 2


@dataclass(frozen=True)
class Faults:
    """Faults of a prediction along centrelines.

    Attributes:
        centerline: voxels of the reference's centreline, boolean, shape HW[D].
        missed: those of them outside the prediction.
        false: voxels of the prediction's centreline outside the reference.
        breaks: one voxel of each gap that the prediction has and the reference has not, shape (number, dimensions).
        merges: one voxel of each bridge between parts that the reference keeps apart, as ``breaks``.
    """

    centerline: np.ndarray
    missed: np.ndarray
    false: np.ndarray
    breaks: np.ndarray
    merges: np.ndarray


def mask_faults(
    pred: np.ndarray, reference: np.ndarray, centerlines: tuple[np.ndarray, np.ndarray] | None = None
) -> Faults:
    """Find what one boolean mask misses and invents of another, shape HW[D].

    A break is a run of missed centreline with covered centreline at two ends at least, which the prediction does not
    connect within two voxels around the run; a run with n unconnected ends counts n - 1 times. A false merge is the
    same with the masks exchanged: a run of the prediction's centreline outside the reference that connects parts of
    the reference which are not connected there. What is missed at the end of a vessel is no break, and a missing vessel
    is none either. Both look at the place, not at the whole: a cut ring is broken though it stays in one piece.

    Args:
        pred: prediction.
        reference: reference of the same shape.
        centerlines: of prediction and reference, where they are known; thinned here when None.

    Raises:
        ValueError: when the shapes differ.
    """
    if pred.shape != reference.shape:
        raise ValueError(f"pred and reference must have one shape, got {pred.shape} and {reference.shape}.")
    box = bounding_box(pred | reference)
    offset = np.array([side.start for side in box], dtype=np.int64)
    found = []
    lines = (skeleton(pred[box]), skeleton(reference[box])) if centerlines is None else [c[box] for c in centerlines]
    for centerline, other in ((lines[1], pred[box]), (lines[0], reference[box])):
        outside = centerline & ~other
        found.append((_back(centerline, box, pred.shape), outside, _gaps(centerline, outside, other) + offset))
    (centerline, missed, breaks), (_, false, merges) = found
    missed, false = (_back(array, box, pred.shape) for array in (missed, false))
    return Faults(centerline, missed, false, breaks, merges)


def find_faults(pred: np.ndarray, reference: np.ndarray) -> Faults:
    """Faults of all classes of one case together; see :py:func:`mask_faults`.

    Args:
        pred: class indices, shape HW[D], 0 background.
        reference: as ``pred``, on the same grid.
    """
    nothing = np.zeros(reference.shape, dtype=bool)
    centerline, missed, false = nothing, nothing.copy(), nothing.copy()
    breaks, merges = ([np.zeros((0, reference.ndim), dtype=np.int64)] for _ in range(2))
    for index in np.union1d(reference[reference > 0], pred[pred > 0]):
        box = bounding_box((reference == index) | (pred == index))
        of_class = mask_faults(pred[box] == index, reference[box] == index)
        offset = np.array([side.start for side in box], dtype=np.int64)
        centerline[box] |= of_class.centerline
        missed[box] |= of_class.missed
        false[box] |= of_class.false
        breaks.append(of_class.breaks + offset)
        merges.append(of_class.merges + offset)
    return Faults(centerline, missed, false, np.concatenate(breaks), np.concatenate(merges))


def _gaps(centerline: np.ndarray, outside: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One voxel of each run of ``outside`` whose ends on ``centerline`` the mask does not connect."""
    around = np.ones((3,) * mask.ndim)
    found = [np.zeros((0, mask.ndim), dtype=np.int64)]
    runs, number_of_runs = ndimage.label(outside, around)
    # find_objects cannot look at an array of size 0
    for number, box in enumerate(ndimage.find_objects(runs) if number_of_runs else (), start=1):
        wide = tuple(slice(max(side.start - _DETOUR, 0), side.stop + _DETOUR) for side in box)
        run = runs[wide] == number
        ends = ndimage.binary_dilation(run, around) & centerline[wide] & mask[wide]
        parts, _ = ndimage.label(mask[wide], around)
        gaps = np.unique(parts[ends]).size - 1
        if gaps > 0:
            voxels = np.argwhere(run) + [side.start for side in wide]
            # the voxel of the run that is nearest to its middle
            middle = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
            found.append(np.repeat(middle[None], gaps, axis=0))
    return np.concatenate(found)


def _back(cropped: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros(shape, dtype=bool)
    whole[box] = cropped
    return whole
