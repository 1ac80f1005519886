"""Step "label maps -> scores", as the TopCoW challenge scores: its numbers under its own names, case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage

from .challenge_cases import check_pair, check_values, describe_cases, foreground_box, plain_centerline_dice
from .mask_scores import compute_betti_numbers, mask_dice, score_classes
from .surface_distances import distances_both_ways, surface
from .willis_topology import DETECTED, HALVES, LABELS, balanced_accuracy, detections, graphs, topologies

__all__ = ["TOPCOW_CONVENTIONS", "aggregate_topcow", "topcow_scores"]

_MERGED = "MergedBin"
_ABSENT_MM = 90.0
_SCORES = ("Dice", "B0err", "HD", "HD95")

# patterns of names, as fnmatch reads them
TOPCOW_CONVENTIONS = {
    "classes": (
        "every label that is in reference or prediction; ClsAvg is their plain mean, MergedBin all labels as one; a "
        "label in neither has no key; where both maps are empty, ClsAvg and MergedBin are 0"
    ),
    "Dice_*": "twice the overlap by the sum of sizes; 0 where a label is in one map only",
    "clDice": (
        "of all labels merged, by scikit-image's skeleton in stored axis order without restored centrelines; the term "
        "of an empty skeleton is 0, and so is the score where both terms are"
    ),
    "B0err_*": "|prediction - reference| of the number of 26-connected components",
    "Betti_1_error_MergedBin": "|prediction - reference| of the number of loops of all labels merged, as TopCoW 2023",
    "HD95_*": (
        "larger of the two directed 95th percentiles of the distances between surfaces, in mm; a surface voxel has "
        "background among its 26 neighbours; 90 mm where a label is in one map only"
    ),
    "HD_*": "largest distance between surfaces, in mm; otherwise as HD95",
    "all_detection_dicts": (
        "for R-Pcom, L-Pcom, Acom and 3rd-A2: TP where the reference has it and the intersection over union is 0.25 or "
        "more, FN where it has it and the overlap is less, FP or TN where it does not have it"
    ),
    "all_graph_dicts": (
        "which edges each half has: anterior left A1, Acom, third A2, right A1; posterior left Pcom, left P1,"
        " right P1, right Pcom; an A1 is an ACA that touches its ICA, a P1 a PCA that touches the BA (26 neighbours), "
        "the others are labels"
    ),
    "all_topo_dicts": (
        "a half matches where each of its labels (Acom, ACAs, third A2; PCAs, Pcoms) is detected as TP or TN, touches "
        "the same labels and has as many components as in the reference, and the prediction's left is not right "
        "(median first index of the ICAs, else the ACAs; of the PCAs)"
    ),
    "dect_avg": (
        "F1, precision and recall of each detected label over all cases, where 0/0 counts as 0; then the mean of the "
        "four labels"
    ),
    "graph_var_bal_acc": "share of cases whose graph is right, averaged over the graphs that occur in the references",
    "topo_var_bal_acc": "share of cases whose half matches, averaged over the graphs that occur in the references",
}


def topcow_scores(pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    """Score one case as TopCoW 2024's segmentation task does, with the loops of TopCoW 2023.

    Number for number what the organisers' code gives, degenerate cases included; distances agree to single precision,
    in which that code computes them. :py:data:`TOPCOW_CONVENTIONS` says how every score is defined.

    K. Yang et al.: Benchmarking the CoW with the TopCoW challenge: Topology-aware anatomical segmentation of the Circle
    of Willis for CTA and MRA, arXiv 2312.17670, 2023.

    Args:
        pred: predicted label map, integers, shape (H, W, D): (x, y, z) as stored, the first axis from right to left as
            in TopCoW's files; values 0 to 12 and 15.
        reference: as ``pred``, on the same grid.
        spacing: size of a voxel along each axis, in mm.

    Returns:
        Under TopCoW's names ``Dice_<label>``, ``B0err_<label>``, ``HD_<label>`` and ``HD95_<label>`` of each label
        present, ``ClsAvg...`` and ``MergedBin``; ``clDice``; ``Betti_1_error_MergedBin``; and the dictionaries
        ``all_detection_dicts``, ``all_graph_dicts`` and ``all_topo_dicts`` for :py:func:`aggregate_topcow`.

    Raises:
        ValueError: when the maps are not integers in 3D of one shape and of the values above, or ``spacing`` is not
            three positive numbers.
    """
    check_pair(pred, reference, spacing)
    # outside the box of all foreground there is nothing that any score looks at
    box = foreground_box(pred, reference)
    pred, reference = pred[box], reference[box]
    check_values(pred, reference, LABELS, "TopCoW")
    pred, reference = (np.ascontiguousarray(label_map, dtype=np.uint8) for label_map in (pred, reference))

    voxels = np.bincount(np.concatenate([pred.ravel(), reference.ravel()]), minlength=max(LABELS) + 1)
    present = [label for label in LABELS if voxels[label]]
    score = partial(_score_masks, spacing=spacing)
    by_label = dict(zip(present, score_classes(score, pred[np.newaxis], reference[np.newaxis], present), strict=True))
    masks = pred > 0, reference > 0
    merged = score(*masks) if present else dict.fromkeys(_SCORES, 0)

    scores: dict[str, Any] = {}
    for name in _SCORES:
        scores |= {f"{name}_{LABELS[label]}": found[name] for label, found in by_label.items()}
        of_classes = [found[name] for found in by_label.values()]
        scores[f"{name}_ClsAvg{name}"] = sum(of_classes) / len(of_classes) if of_classes else 0
        scores[f"{name}_{_MERGED}"] = merged[name]
    loops = [compute_betti_numbers(mask)[1] for mask in masks]
    return {
        **scores,
        "clDice": plain_centerline_dice(*masks, empty=0),
        f"Betti_1_error_{_MERGED}": abs(loops[0] - loops[1]),
        "all_detection_dicts": detections(pred, reference),
        "all_graph_dicts": graphs(pred, reference),
        "all_topo_dicts": topologies(pred, reference),
    }


def aggregate_topcow(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Aggregate what :py:func:`topcow_scores` gave over cases as TopCoW 2024 does.

    Returns:
        For each number its statistics over the cases that have it (see
        :py:func:`monai_skelrec.challenge_cases.describe_cases`); ``dect_avg``, ``graph_var_bal_acc`` and
        ``topo_var_bal_acc`` as :py:data:`TOPCOW_CONVENTIONS` defines them.

    Raises:
        ValueError: when there are no cases.
    """
    statistics: dict[str, Any] = {**describe_cases(cases)}
    graph, topology = {}, {}
    for half in HALVES:
        found = [case["all_graph_dicts"][half] for case in cases]
        graph[half] = balanced_accuracy(
            [tuple(each["gt_graph"]) for each in found], [tuple(each["pred_graph"]) for each in found]
        )
        variants = [tuple(case["all_topo_dicts"]["gt_topology"][half]["graph"]) for case in cases]
        matched = [case["all_topo_dicts"]["match_verdict"][half] for case in cases]
        topology[half] = balanced_accuracy(
            variants, [variant if match else None for variant, match in zip(variants, matched, strict=True)]
        )
    return {
        **statistics,
        "dect_avg": _average_detections([case["all_detection_dicts"] for case in cases]),
        "graph_var_bal_acc": graph,
        "topo_var_bal_acc": topology,
    }


def _score_masks(pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """Score two masks that are not both empty."""
    hd95, hd = _hausdorff(pred, reference, spacing)
    components = [ndimage.label(mask, np.ones((3, 3, 3)))[1] for mask in (pred, reference)]
    return {"Dice": mask_dice(pred, reference), "B0err": abs(components[0] - components[1]), "HD": hd, "HD95": hd95}


def _hausdorff(pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    if not pred.any() or not reference.any():
        return _ABSENT_MM, _ABSENT_MM
    found, expected = (surface(mask, connectivity=3, edge=True) for mask in (pred, reference))
    both_ways = distances_both_ways(found, expected, spacing)
    hd95, hd = (max(float(np.percentile(way, share)) for way in both_ways) for share in (95, 100))
    return hd95, hd


def _average_detections(cases: Sequence[Mapping[str, Mapping[str, str]]]) -> dict[str, Any]:
    average: dict[str, Any] = {}
    for label in DETECTED:
        verdicts = [case[str(label)]["Detection"] for case in cases]
        tp, fp, fn = (verdicts.count(verdict) for verdict in ("TP", "FP", "FN"))
        average[str(label)] = {
            "label": LABELS[label],
            "precision": tp / max(tp + fp, 1),
            "recall": tp / max(tp + fn, 1),
            "f1_score": 2 * tp / max(2 * tp + fp + fn, 1),
        }
    for name in ("precision", "recall", "f1_score"):
        values = [average[str(label)][name] for label in DETECTED]
        average[name] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return average
