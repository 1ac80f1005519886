"""Volumes seen along an axis: upright, lit, small things before large ones, in colours that everybody tells apart."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from monai_skelrec.projections import COLOURS, colour_classes, maximum_intensity, turn_upright


@pytest.mark.parametrize("axes", ["LAS", "RAS", "LPS", "PIR"])
def test_upright_means_left_front_up_however_the_volume_is_stored(axes):
    world = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for index, letter in enumerate(axes):
        axis, sign = world[letter]
        affine[axis, index] = sign
    # a voxel on the patient's left, at the front and on top, in index space of size 4
    place = tuple(3 if letter in "LAS" else 0 for letter in axes)
    volume = np.zeros((4, 4, 4))
    volume[place] = 1
    assert np.argwhere(turn_upright(volume, affine)).tolist() == [[3, 3, 3]]


def test_without_an_affine_nothing_is_turned():
    volume = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(turn_upright(volume, None), volume)


def test_brightest_voxel_of_a_line_is_seen():
    volume = np.zeros((3, 3, 5))
    volume[1, 1, 4], volume[2, 0, 0] = 10, 5
    np.testing.assert_allclose(maximum_intensity(volume, 2), [[0, 0, 0], [0, 1, 0], [0.5, 0, 0]], atol=0.03)
    assert (maximum_intensity(np.full((3, 3, 3), 7), 0) == 0).all()


def hue(picture: np.ndarray, row: int, column: int) -> int:
    """Class whose colour, darker or lighter, a place has; 0 for none."""
    pixel = picture[row, column]
    if not pixel.any():
        return 0
    directions = COLOURS / np.linalg.norm(COLOURS, axis=1, keepdims=True)
    return int(np.argmax(directions @ (pixel / np.linalg.norm(pixel)))) + 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nerve_inside_a_jaw_is_seen(axis):
    label = np.zeros((9, 9, 9), dtype=np.uint8)
    label[1:8, 1:8, 1:8] = 1
    label[4, 4, 4] = 2
    picture = colour_classes(label, axis, (1, 1, 1), np.zeros((9, 9, 3)))
    assert (hue(picture, 4, 4), hue(picture, 2, 2), hue(picture, 0, 0)) == (2, 1, 0)
    assert picture.min() >= 0 and picture.max() <= 1


def test_background_shows_between_classes():
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    label[0, 0, 0] = 3
    picture = colour_classes(label, 2, (1, 1, 1), np.full((4, 4, 3), 0.25))
    assert hue(picture, 0, 0) == 3 and (picture[1:] == 0.25).all()


def test_surface_that_turns_away_is_darker():
    depth, across = np.mgrid[:40, :40]
    ramp = np.repeat((depth > across)[:, None], 40, axis=1).astype(np.uint8)  # (depth, up, across)
    wall = np.ones_like(ramp)
    light = [colour_classes(label, 0, (1, 1, 1), np.zeros((40, 40, 3)))[20, 20, 0] for label in (ramp, wall)]
    # lit from the viewer's side: 0.55 + 0.45 cos 45 degrees against 1
    assert light[0] / light[1] == pytest.approx(0.55 + 0.45 / np.sqrt(2), abs=0.02)


def test_more_classes_than_colours_start_again():
    label = np.full((2, 2, 2), len(COLOURS) + 1, dtype=np.uint8)
    assert hue(colour_classes(label, 0, (1, 1, 1), np.zeros((2, 2, 3))), 0, 0) == 1


# Machado, Oliveira, Fernandes: A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009
BLINDNESS = {
    "ordinary": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_first_ten_colours_differ_for_everybody(kind):
    seen = np.clip((COLOURS[:10] / 255) ** 2.2 @ np.transpose(BLINDNESS[kind]), 0, 1) ** (1 / 2.2)
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.1
