"""Step "label maps -> scores", TopCoW's anatomy: which vessels are found, which touch, and whether both agree.

TopCoW judges the front (anterior) and the back (posterior) half of the Circle of Willis each on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

__all__ = ["DETECTED", "HALVES", "LABELS", "balanced_accuracy", "detections", "graphs", "topologies"]

LABELS = {
    1: "BA",
    2: "R-PCA",
    3: "L-PCA",
    4: "R-ICA",
    5: "R-MCA",
    6: "L-ICA",
    7: "L-MCA",
    8: "R-Pcom",
    9: "L-Pcom",
    10: "Acom",
    11: "R-ACA",
    12: "L-ACA",
    15: "3rd-A2",
}
# the vessels that not everybody has
DETECTED = (8, 9, 10, 15)
# labels of each half, in the order of TopCoW's tables
HALVES = {"anterior": (10, 11, 12, 15), "posterior": (2, 3, 8, 9)}
# edges of each half's graph: a vessel that must be there and, where one is named, the vessel that it must touch
_EDGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "anterior": ((12, 6), (10, None), (15, None), (11, 4)),
    "posterior": ((9, None), (3, 1), (2, 1), (8, None)),
}
# left and right vessel by which each half's sides are told, the first pair that is there
_SIDES = {"anterior": ((6, 4), (12, 11)), "posterior": ((3, 2),)}
_LEAST_IOU = 0.25
_AROUND = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class _Vessel:
    components: int
    neighbours: list[int]


def detections(pred: np.ndarray, reference: np.ndarray) -> dict[str, dict[str, str]]:
    """Say of each vessel that not everybody has whether it is found: ``TP``, ``TN``, ``FP`` or ``FN``.

    Args:
        pred: label map, shape (H, W, D), in TopCoW's values.
        reference: as ``pred``.

    Returns:
        ``{"8": {"label": "R-Pcom", "Detection": "TP"}, ...}``
    """
    return {str(label): {"label": LABELS[label], "Detection": _detect(pred, reference, label)} for label in DETECTED}


def graphs(pred: np.ndarray, reference: np.ndarray) -> dict[str, dict[str, list[int]]]:
    """Say which edges of each half's graph are there; see :py:func:`detections` for the arguments.

    Returns:
        ``{"anterior": {"gt_graph": [1, 1, 0, 1], "pred_graph": [...]}, "posterior": {...}}``, in the order left A1,
        Acom, third A2, right A1 and left Pcom, left P1, right P1, right Pcom.
    """
    maps = {"gt_graph": _vessels(reference), "pred_graph": _vessels(pred)}
    return {half: {name: _graph(vessels, half) for name, vessels in maps.items()} for half in HALVES}


def topologies(pred: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Compare number of components and touching vessels of each half; see :py:func:`detections` for the arguments.

    Returns:
        ``gt_topology`` and ``pred_topology``, for each half its graph, of each vessel ``b0`` and ``neighbors`` (and
        ``detection`` in the prediction), and whether left and right are swapped in the prediction (``LR_flipped``);
        and ``match_verdict``, whether all of it agrees.
    """
    expected, found = _vessels(reference), _vessels(pred)
    topology: dict[str, dict[str, Any]] = {"gt_topology": {}, "pred_topology": {}, "match_verdict": {}}
    for half, labels in HALVES.items():
        detected = {label: _detect(pred, reference, label) for label in labels}
        flipped = _is_flipped(pred, half)
        topology["gt_topology"][half] = {
            "graph": _graph(expected, half),
            **{LABELS[label]: _as_dict(expected[label]) for label in labels},
        }
        topology["pred_topology"][half] = {
            "graph": _graph(found, half),
            **{LABELS[label]: {"detection": detected[label], **_as_dict(found[label])} for label in labels},
            "LR_flipped": flipped,
        }
        topology["match_verdict"][half] = not flipped and all(
            detected[label] in ("TP", "TN") and expected[label] == found[label] for label in labels
        )
    return topology


def balanced_accuracy(expected: Sequence[object], found: Sequence[object]) -> float:
    """Mean over the kinds in ``expected`` of the share of each that was found."""
    pairs = list(zip(expected, found, strict=True))
    shares = []
    for kind in set(expected):
        right = [answer == kind for truth, answer in pairs if truth == kind]
        shares.append(sum(right) / len(right))
    return float(np.mean(shares))


def _detect(pred: np.ndarray, reference: np.ndarray, label: int) -> str:
    found, expected = pred == label, reference == label
    if not expected.any():
        return "FP" if found.any() else "TN"
    iou = np.count_nonzero(found & expected) / np.count_nonzero(found | expected)
    return "TP" if iou >= _LEAST_IOU else "FN"


def _vessels(label_map: np.ndarray) -> dict[int, _Vessel]:
    """Components (26 neighbours) and touching labels of every vessel."""
    boxes = ndimage.find_objects(label_map, max_label=max(LABELS))
    vessels = {}
    for label in LABELS:
        box = boxes[label - 1]
        if box is None:
            vessels[label] = _Vessel(0, [])
            continue
        # one voxel of margin, where the array has it, holds all that touches the vessel
        around = label_map[tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)]
        mask = around == label
        touched = np.unique(around[ndimage.binary_dilation(mask, _AROUND) & ~mask])
        vessels[label] = _Vessel(int(ndimage.label(mask, _AROUND)[1]), touched[touched != 0].tolist())
    return vessels


def _graph(vessels: Mapping[int, _Vessel], half: str) -> list[int]:
    return [
        int(vessels[label].components > 0 and (other is None or other in vessels[label].neighbours))
        for label, other in _EDGES[half]
    ]


def _as_dict(vessel: _Vessel) -> dict[str, Any]:
    return {"b0": vessel.components, "neighbors": list(vessel.neighbours)}


def _is_flipped(label_map: np.ndarray, half: str) -> bool:
    for left, right in _SIDES[half]:
        middles = [np.nonzero(label_map == label)[0] for label in (left, right)]
        if all(middle.size for middle in middles):
            # TopCoW stores its first axis from right to left
            return bool(np.median(middles[0]) < np.median(middles[1]))
    return False
