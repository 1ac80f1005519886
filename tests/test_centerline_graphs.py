"""Branches, ends and rings of centrelines, counted by hand on arrays small enough to draw."""

from __future__ import annotations

import math

import networkx
import numpy as np
import pytest

from monai_skelrec import circle_of_willis
from monai_skelrec.centerline_graphs import centerline_edges, centerline_graph, inscribed_radii
from monai_skelrec.skeletons import skeleton
from monai_skelrec.tree_scores import centerline_length
from monai_skelrec.voxels import Voxels


def drawn(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def places(graph, branch):
    return list(map(tuple, graph.points[branch].tolist()))


def test_a_line_is_one_branch_in_order():
    graph = centerline_graph(drawn(".....", "##...", "..##."))
    (branch,) = graph.branches
    assert places(graph, branch) in ([(1, 0), (1, 1), (2, 2), (2, 3)], [(2, 3), (2, 2), (1, 1), (1, 0)])
    assert {places(graph, [node])[0] for node in graph.nodes} == {(1, 0), (2, 3)}


def test_a_fork_has_three_branches_that_meet_in_one_node():
    graph = centerline_graph(drawn("#...#", ".#.#.", "..#..", "..#..", "..#.."))
    assert sorted(len(branch) for branch in graph.branches) == [3, 3, 3]
    assert len(graph.nodes) == 4
    assert all((2, 2) in (places(graph, branch)[0], places(graph, branch)[-1]) for branch in graph.branches)


def test_a_ring_is_one_closed_branch():
    graph = centerline_graph(drawn(".##.", "#..#", "#..#", ".##."))
    (branch,) = graph.branches
    assert branch[0] == branch[-1] and len(branch) == 9 and len(set(branch.tolist())) == 8
    assert graph.nodes.size == 0


def test_a_ring_on_a_stem_leaves_and_ends_in_their_node():
    graph = centerline_graph(drawn("..#..", ".#.#.", "..#..", "..#..", "..#.."))
    closed = [branch for branch in graph.branches if branch[0] == branch[-1]]
    (stem,) = [branch for branch in graph.branches if branch[0] != branch[-1]]
    assert len(closed) == 1 and len(closed[0]) == 5
    assert {places(graph, stem)[0], places(graph, stem)[-1]} == {(2, 2), (4, 2)}


def test_two_branches_may_join_the_same_two_nodes():
    graph = centerline_graph(drawn("..##..", "##..##", "..##.."))
    assert sorted(len(branch) for branch in graph.branches) == [2, 2, 4, 4]


def test_neighbouring_nodes_have_one_branch_between_them():
    graph = centerline_graph(drawn("#..#", ".##.", "#..#"))
    assert sorted(len(branch) for branch in graph.branches) == [2, 2, 2, 2, 2]


def test_a_lone_voxel_is_a_node_without_branches():
    graph = centerline_graph(drawn("...", ".#.", "..."))
    assert graph.nodes.tolist() == [0] and graph.branches == () and len(graph.edges) == 0


def test_nothing_has_no_graph():
    graph = centerline_graph(np.zeros((3, 3, 3), bool))
    assert graph.points.shape == (0, 3) and graph.nodes.size == 0 and graph.branches == ()


def test_a_corner_is_not_cut_across():
    edges = centerline_edges(Voxels.of(drawn("##", ".#")))
    assert len(edges) == 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(14, 12), (8, 9, 7)])
def test_branches_share_out_all_edges_and_keep_components(seed, shape):
    """networkx, built from the edges alone, is the judge."""
    line = np.random.default_rng(seed).random(shape) < 0.2
    graph = centerline_graph(line)
    judge = networkx.Graph(graph.edges.tolist())
    judge.add_nodes_from(range(len(graph.points)))
    walked = [
        tuple(sorted(pair)) for branch in graph.branches for pair in zip(branch[:-1].tolist(), branch[1:].tolist())
    ]
    assert sorted(walked) == sorted(tuple(sorted(pair)) for pair in judge.edges)
    nodes = {node for node, degree in judge.degree if degree != 2}
    assert set(graph.nodes.tolist()) == nodes
    for branch in graph.branches:
        assert not nodes & set(branch[1:-1].tolist())
        assert {branch[0], branch[-1]} <= nodes or branch[0] == branch[-1]
    voxels = Voxels.of(line)
    neighbours = networkx.Graph()
    neighbours.add_nodes_from(range(len(graph.points)))
    for one, point in enumerate(voxels.coordinates.T):
        near = np.flatnonzero(np.abs(voxels.coordinates.T - point).max(axis=1) == 1)
        neighbours.add_edges_from((one, int(other)) for other in near)
    assert networkx.number_connected_components(judge) == networkx.number_connected_components(neighbours)


def test_branches_are_as_long_as_the_centreline():
    line = skeleton(circle_of_willis(3) > 0)
    graph = centerline_graph(line)
    size = np.array([0.4, 0.5, 0.9])
    total = sum(np.linalg.norm(np.diff(graph.points[branch] * size, axis=0), axis=1).sum() for branch in graph.branches)
    assert total == pytest.approx(centerline_length(line, spacing=size))


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"centerline must be 2D or 3D, got shape \(2,\)"):
        centerline_graph(np.ones(2, bool))


def test_radius_reaches_to_the_nearest_voxel_outside():
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 2:7, 1:8] = True
    assert inscribed_radii(mask, np.array([[4, 4, 4], [2, 4, 4]])).tolist() == [3, 1]
    assert inscribed_radii(mask, np.array([[4, 4, 4]]), (1, 2, 0.5)).tolist() == [2]


def test_outside_the_array_is_background():
    assert inscribed_radii(np.ones((5, 5), bool), np.array([[2, 2]])).tolist() == [3]


def test_radius_of_a_diagonal_neighbour():
    mask = np.ones((5, 5), bool)
    mask[1, 1] = False
    assert inscribed_radii(mask, np.array([[2, 2]]))[0] == pytest.approx(math.sqrt(2))
