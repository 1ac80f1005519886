"""Detections, graphs and matches of a Circle of Willis that one can draw."""

from __future__ import annotations

import numpy as np
import pytest

from monai_skelrec.willis_topology import balanced_accuracy, detections, graphs, topologies

# seen from below: rows are the second axis, front first; columns the first axis, right first
CIRCLE = """
.........
...ral...
..r...l..
.i.....j.
.c.....d.
..p...q..
...pBq...
"""
LETTERS = {".": 0, "B": 1, "p": 2, "q": 3, "i": 4, "j": 6, "c": 8, "d": 9, "a": 10, "r": 11, "l": 12, "t": 15}


def draw(picture: str = CIRCLE) -> np.ndarray:
    """Label map of a drawing, one slice among three; shape (9, 7, 3)."""
    rows = [[LETTERS[letter] for letter in line] for line in picture.split()]
    return np.stack([np.zeros((9, 7), np.uint8), np.array(rows, np.uint8).T, np.zeros((9, 7), np.uint8)], axis=-1)


def verdicts(pred: np.ndarray, reference: np.ndarray) -> tuple[bool, bool]:
    found = topologies(pred, reference)["match_verdict"]
    return found["anterior"], found["posterior"]


@pytest.mark.parametrize(
    "found, expected, verdict",
    [
        pytest.param(1, 4, "TP", id="a quarter is enough"),
        pytest.param(1, 5, "FN", id="less is not"),
        pytest.param(0, 1, "FN", id="missed"),
        pytest.param(1, 0, "FP", id="invented"),
        pytest.param(0, 0, "TN", id="in neither"),
    ],
)
def test_detection_asks_for_an_overlap_of_a_quarter(found, expected, verdict):
    pred, reference = np.zeros((2, 3, 3, 6), np.uint8)
    pred[1, 1, :found] = 15
    reference[1, 1, :expected] = 15
    assert detections(pred, reference)["15"] == {"label": "3rd-A2", "Detection": verdict}
    assert [entry["label"] for entry in detections(pred, reference).values()] == ["R-Pcom", "L-Pcom", "Acom", "3rd-A2"]


@pytest.mark.parametrize(
    "old, new, anterior, posterior",
    [
        pytest.param("", "", [1, 1, 0, 1], [1, 1, 1, 1], id="whole circle"),
        pytest.param(".........", "....t....", [1, 1, 1, 1], [1, 1, 1, 1], id="third A2"),
        pytest.param("..r...l..", "......l..", [1, 1, 0, 0], [1, 1, 1, 1], id="right ACA off its ICA"),
        pytest.param("...ral...", "...r.l...", [1, 0, 0, 1], [1, 1, 1, 1], id="no Acom"),
        pytest.param("..p...q..", "..p......", [1, 1, 0, 1], [1, 1, 1, 1], id="left PCA still at the BA"),
        pytest.param("...pBq...", "...pB....", [1, 1, 0, 1], [1, 0, 1, 1], id="left PCA off the BA"),
        pytest.param(".c.....d.", ".......d.", [1, 1, 0, 1], [1, 1, 1, 0], id="no right Pcom"),
    ],
)
def test_graph_has_the_edges_one_sees(old, new, anterior, posterior):
    pred = draw(CIRCLE.replace(old, new, 1) if old else CIRCLE)
    found = graphs(pred, draw())
    assert found["anterior"] == {"gt_graph": [1, 1, 0, 1], "pred_graph": anterior}
    assert found["posterior"] == {"gt_graph": [1, 1, 1, 1], "pred_graph": posterior}


def test_topology_names_components_and_neighbours():
    found = topologies(draw(), draw())
    assert found["gt_topology"]["anterior"] == {
        "graph": [1, 1, 0, 1],
        "Acom": {"b0": 1, "neighbors": [11, 12]},
        "R-ACA": {"b0": 1, "neighbors": [4, 10]},
        "L-ACA": {"b0": 1, "neighbors": [6, 10]},
        "3rd-A2": {"b0": 0, "neighbors": []},
    }
    assert found["pred_topology"]["posterior"] == {
        "graph": [1, 1, 1, 1],
        "R-PCA": {"detection": "TP", "b0": 1, "neighbors": [1, 8]},
        "L-PCA": {"detection": "TP", "b0": 1, "neighbors": [1, 9]},
        "R-Pcom": {"detection": "TP", "b0": 1, "neighbors": [2, 4]},
        "L-Pcom": {"detection": "TP", "b0": 1, "neighbors": [3, 6]},
        "LR_flipped": False,
    }


def test_a_map_matches_itself_wherever_it_lies():
    assert verdicts(draw(), draw()) == (True, True)
    to_the_edge = draw()[1:8, 1:, 1:2]
    assert topologies(to_the_edge, to_the_edge) == topologies(draw(), draw())


@pytest.mark.parametrize(
    "picture, expected",
    [
        pytest.param(CIRCLE.replace("........", "a.......", 1), (False, True), id="one component more"),
        pytest.param(CIRCLE.replace("..r...l..", "......l..", 1), (False, True), id="one contact less"),
        pytest.param(CIRCLE.replace("...pBq...", "...pBp...", 1), (True, False), id="one contact more"),
        pytest.param(CIRCLE.replace("c", "i", 1), (True, False), id="one vessel less"),
    ],
)
def test_a_half_that_differs_does_not_match(picture, expected):
    assert verdicts(draw(picture), draw()) == expected


def test_a_vessel_that_hardly_overlaps_does_not_match_for_all_its_contacts():
    reference = draw()
    # six voxels of Acom where the prediction has one; both touch both ACAs
    reference[4, :2] = 10
    assert graphs(draw(), reference)["anterior"]["gt_graph"] == [1, 1, 0, 1]
    found = topologies(draw(), reference)
    assert found["pred_topology"]["anterior"]["Acom"] == {"detection": "FN", "b0": 1, "neighbors": [11, 12]}
    assert found["gt_topology"]["anterior"]["Acom"] == {"b0": 1, "neighbors": [11, 12]}
    assert found["match_verdict"] == {"anterior": False, "posterior": True}


def test_the_icas_tell_the_sides_before_the_acas():
    crossed = draw()
    crossed[draw() == 11], crossed[draw() == 12] = 12, 11
    assert not topologies(crossed, crossed)["pred_topology"]["anterior"]["LR_flipped"]


def test_swapped_sides_are_told_by_the_icas_and_the_pcas():
    swapped = draw()[::-1]
    # both are mirrored, so all agrees but the sides
    found = topologies(swapped, swapped)
    assert found["pred_topology"]["anterior"]["LR_flipped"] and found["pred_topology"]["posterior"]["LR_flipped"]
    assert found["match_verdict"] == {"anterior": False, "posterior": False}


def test_without_both_icas_the_acas_tell_the_sides_and_without_those_nothing_does():
    swapped = draw()[::-1].copy()
    swapped[swapped == 4] = 0
    assert topologies(swapped, swapped)["pred_topology"]["anterior"]["LR_flipped"]
    swapped[swapped == 12] = 0
    assert not topologies(swapped, swapped)["pred_topology"]["anterior"]["LR_flipped"]


def test_balanced_accuracy_weighs_rare_kinds_as_common_ones():
    assert balanced_accuracy(["a", "a", "a", "b"], ["a", "a", "x", "b"]) == pytest.approx((2 / 3 + 1) / 2)
    assert balanced_accuracy(["a", "a"], ["b", "b"]) == 0
