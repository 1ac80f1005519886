"""Two files lie on one grid, or the sentence says by what they differ."""

from __future__ import annotations

import numpy as np
import pytest

from monai_skelrec.grids import Grid, ending, grid_difference

AFFINE = np.array([[0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1]])
GRID = Grid((40, 40, 20), AFFINE)


def changed(**entries):
    affine = AFFINE.copy()
    for place, value in entries.items():
        affine[int(place[1]), int(place[2])] = value
    return Grid(GRID.shape, affine)


def turned(degrees):
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = AFFINE.copy()
    affine[:3, :3] = rotation @ AFFINE[:3, :3]
    return Grid(GRID.shape, affine)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(GRID, id="itself"),
        pytest.param(changed(_03=10.1), id="origin a fifth of a voxel away"),
        pytest.param(changed(_00=0.5001), id="spacing rounded"),
        pytest.param(turned(0.05), id="direction rounded"),
        pytest.param(Grid(GRID.shape, None), id="no header"),
    ],
)
def test_rounded_headers_are_one_grid(other):
    assert grid_difference(GRID, other) is None and grid_difference(other, GRID) is None


@pytest.mark.parametrize(
    "other, names",
    [
        pytest.param(Grid((40, 40, 21), AFFINE), ["shape (40, 40, 20) and (40, 40, 21)"], id="shape"),
        pytest.param(changed(_22=2.5), ["spacing (0.5, 0.5, 2) and (0.5, 0.5, 2.5)"], id="spacing"),
        pytest.param(changed(_03=11), ["origin (10, -20, 5) and (11, -20, 5)"], id="origin"),
        pytest.param(turned(30), ["direction (1, 0, 0, 0, 1, 0, 0, 0, 1) and (0.866025, -0.5"], id="direction"),
        pytest.param(changed(_00=-0.5), ["direction (1, 0, 0, "], id="mirrored"),
        pytest.param(changed(_00=0.6, _03=90), ["spacing", "origin"], id="two of them"),
    ],
)
def test_what_differs_is_named(other, names):
    difference = grid_difference(GRID, other)
    assert difference is not None and all(name in difference for name in names)
    kinds = [kind for kind in ("shape", "spacing", "direction", "origin") if kind in difference]
    assert kinds == [name.split()[0] for name in names]


def test_small_image_with_another_spacing_differs_though_no_corner_moves_far():
    small = [Grid((4, 4), np.diag([edge, 1, 1])) for edge in (1.0, 1.05)]
    assert grid_difference(*small) == "spacing (1, 1) and (1.05, 1)"


def test_endings_are_those_of_the_formats():
    assert [ending(name) for name in ("a.nii.gz", "b.NII", "c.d.mha", "e.png", "f.txt", "g")] == [
        ".nii.gz",
        ".nii",
        ".mha",
        ".png",
        "",
        "",
    ]
