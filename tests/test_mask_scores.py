"""Betti numbers of shapes whose answer is mathematics, and centreline Dice counted by hand."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from monai_skelrec.mask_scores import (
    bounding_box,
    compute_betti_numbers,
    mask_betti_errors,
    mask_centerline_dice,
    mask_precision_recall,
    score_classes,
)

TOPOMORTAR = Path(__file__).parents[2] / "shared" / "data" / "topomortar"
NAN = float("nan")

Z, Y, X = np.mgrid[-20:21, -20:21, -20:21].astype(float)
BALL = np.sqrt(X**2 + Y**2 + Z**2)


def torus(thickness: float, radius: float = 12) -> np.ndarray:
    return np.hypot(np.hypot(X, Y) - radius, Z) <= thickness


def tube_along(curve: np.ndarray, thickness: float, size: int = 56) -> np.ndarray:
    """All voxels within ``thickness`` of a closed curve; ``curve`` holds points around the origin, shape (N, 3)."""
    points = np.unique(np.round(curve + size / 2).astype(int), axis=0)
    off = np.ones((size,) * 3, dtype=bool)
    off[tuple(points.T)] = False
    return ndimage.distance_transform_edt(off) <= thickness


def trefoil(scale: float = 7.5) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 4000)
    return scale * np.stack(
        [np.sin(t) + 2 * np.sin(2 * t), np.cos(t) - 2 * np.cos(2 * t), -1.6 * np.sin(3 * t)], axis=1
    )


def hopf_link() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 2000)
    zero = np.zeros_like(t)
    flat = 12 * np.stack([np.cos(t), np.sin(t), zero], axis=1)
    upright = 12 * np.stack([np.cos(t) + 1, zero, np.sin(t)], axis=1)
    return tube_along(flat, 3) | tube_along(upright, 3)


def lattice(nodes: int, step: int = 4) -> np.ndarray:
    """Grid lines through ``nodes`` points an axis."""
    size = step * (nodes - 1) + 1
    on_line = np.indices((size,) * 3) % step == 0
    return on_line.sum(axis=0) >= 2


def block_with_cavities(each_side: int) -> np.ndarray:
    size = 2 * each_side + 1
    return ~(np.indices((size,) * 3) % 2 == 1).all(axis=0)


KNOT = tube_along(trefoil(), 2.5)
CENTRED = np.sqrt(((np.indices(KNOT.shape) - 28) ** 2).sum(axis=0)) <= 27.9

SHAPES = [
    pytest.param(np.zeros((4, 5, 6), bool), (0, 0, 0), id="nothing"),
    pytest.param(np.ones((4, 5, 6), bool), (1, 0, 0), id="everything, up to the border"),
    pytest.param(BALL <= 15, (1, 0, 0), id="ball"),
    pytest.param((BALL <= 15) & (BALL > 11), (1, 0, 1), id="shell"),
    pytest.param(
        ((BALL <= 18) & (BALL > 15)) | ((BALL <= 11) & (BALL > 8)) | (BALL <= 4), (3, 0, 2), id="nested shells"
    ),
    pytest.param(torus(4), (1, 1, 0), id="solid torus"),
    pytest.param(torus(6) & ~torus(3), (1, 2, 1), id="torus surface"),
    pytest.param(
        np.roll(torus(2), 6, axis=1) | np.roll(torus(2), -6, axis=1), (1, 3, 0), id="two rings crossing: three loops"
    ),
    pytest.param(hopf_link(), (2, 2, 0), id="Hopf link"),
    pytest.param(KNOT, (1, 1, 0), id="trefoil tube"),
    pytest.param(tube_along(trefoil(), 3.5) & ~tube_along(trefoil(), 1.5), (1, 2, 1), id="hollow trefoil tube"),
    pytest.param(CENTRED & ~KNOT, (1, 1, 1), id="ball minus a knot inside it"),
    # edges - vertices + 1 independent loops of a connected graph: 3 n^2 (n - 1) - n^3 + 1
    pytest.param(lattice(3), (1, 28, 0), id="lattice of 27 nodes"),
    pytest.param(lattice(5), (1, 176, 0), id="lattice of 125 nodes"),
    pytest.param(block_with_cavities(4), (1, 0, 64), id="64 cavities"),
    pytest.param(
        np.eye(3, dtype=bool)[:, :, None] & np.eye(3, dtype=bool), (1, 0, 0), id="diagonal: touching corners join"
    ),
    pytest.param(np.ones((3, 3), bool), (1, 0), id="square"),
    pytest.param(np.zeros((3, 3), bool), (0, 0), id="empty image"),
    pytest.param(np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]]), (1, 0), id="diagonal cross, holes open at the border"),
    pytest.param(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), (1, 1), id="diamond: its hole does not leak diagonally"),
    pytest.param(np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]), (1, 2), id="eight"),
]


@pytest.mark.parametrize("mask, expected", SHAPES)
def test_betti_numbers_of_known_shapes(mask, expected):
    assert compute_betti_numbers(mask) == expected


@pytest.mark.parametrize("turn", list(product([False, True], repeat=3)), ids=str)
def test_betti_numbers_do_not_depend_on_orientation(turn):
    axes = [axis for axis, flip in enumerate(turn) if flip]
    mask = torus(6) & ~torus(3) & ~((X > 0) & (np.abs(Y) < 2) & (Z > 0))
    expected = compute_betti_numbers(mask)
    assert compute_betti_numbers(np.flip(mask, axes)) == expected
    assert compute_betti_numbers(np.flip(mask, axes).T) == expected


def gudhi_betti_numbers(mask: np.ndarray) -> tuple[int, ...]:
    """Foreground 26-connected (8 in 2D): voxels are closed cubes, foreground first in the filtration."""
    gudhi = pytest.importorskip("gudhi")
    complex_ = gudhi.CubicalComplex(top_dimensional_cells=1.0 - mask)
    complex_.compute_persistence(homology_coeff_field=2)
    return tuple(complex_.persistent_betti_numbers(0.5, 0.5)[: mask.ndim])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_betti_numbers_equal_gudhi_on_all_smallest_masks(dimensions):
    for bits in product([False, True], repeat=2**dimensions):
        mask = np.array(bits).reshape((2,) * dimensions)
        assert compute_betti_numbers(mask) == gudhi_betti_numbers(mask), mask


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_betti_numbers_equal_gudhi_on_random_masks(dimensions, fraction):
    random = np.random.default_rng(dimensions)
    for _ in range(100):
        mask = random.random(random.integers(1, 9, dimensions)) < fraction
        assert compute_betti_numbers(mask) == gudhi_betti_numbers(mask), mask


def test_betti_numbers_equal_the_published_ones_of_topomortar():
    if not TOPOMORTAR.is_dir():
        pytest.skip("TopoMortar is not here")
    with open(TOPOMORTAR / "betti_numbers.csv", newline="", encoding="utf-8") as file:
        published = {row["ID"]: (int(row["Betti0"]), int(row["Betti1"])) for row in csv.DictReader(file)}
    masks = sorted((TOPOMORTAR / "test" / "accurate").glob("*.png"))
    # all test images that are in distribution; the table lists those and the ones out of distribution
    assert [path.stem for path in masks] == [f"{number:03d}" for number in range(71, 121)]
    for path in masks:
        mask = np.asarray(Image.open(path).convert("L")) > 127
        assert compute_betti_numbers(mask) == published[path.stem], path.name


@pytest.mark.parametrize(
    "mask, message",
    [
        pytest.param(np.zeros((1, 2, 3, 4), bool), r"must be 2D or 3D, got shape \(1, 2, 3, 4\)", id="4D"),
        pytest.param(
            np.full((2, 2), 3), "0 and 1 only, got values up to 3; compare with one class first", id="label map"
        ),
    ],
)
def test_betti_numbers_refuse_what_is_no_mask(mask, message):
    with pytest.raises(ValueError, match=message):
        compute_betti_numbers(mask)


def test_betti_errors_are_absolute_differences():
    ring, shells = torus(4), ((BALL <= 18) & (BALL > 15)) | (BALL <= 4)
    assert mask_betti_errors(ring, shells) == (1, 1, 1)
    assert mask_betti_errors(shells, ring) == (1, 1, 1)
    assert mask_betti_errors(ring, ring) == (0, 0, 0)


def test_betti_errors_of_an_absent_class_are_the_other_masks_numbers():
    shells, nothing = ((BALL <= 18) & (BALL > 15)) | (BALL <= 4), np.zeros_like(BALL, dtype=bool)
    assert mask_betti_errors(nothing, shells) == mask_betti_errors(shells, nothing) == (2, 0, 1)
    np.testing.assert_equal(mask_betti_errors(nothing, nothing), (NAN, NAN, NAN))


def drawn(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


# a line one pixel wide is its own centreline, so every number below is a count of "#"
LINE = drawn("..........", ".########.", "..........")
HALF = drawn("..........", ".####.....", "..........")
TWO_LINES = drawn("..........", ".########.", "..........", "..........", ".########.")
ONE_OF_TWO = drawn("..........", ".########.", "..........", "..........", "..........")
ELSEWHERE = drawn("..........", "..........", "..........", "..........", ".########.")


@pytest.mark.parametrize(
    "pred, reference, expected",
    [
        pytest.param(LINE, LINE, 1.0, id="identical"),
        pytest.param(HALF, LINE, 2 * 1 * 0.5 / 1.5, id="half missed: precision 1, sensitivity 1/2"),
        pytest.param(LINE, HALF, 2 * 1 * 0.5 / 1.5, id="half invented: precision 1/2, sensitivity 1"),
        pytest.param(ONE_OF_TWO, TWO_LINES, 2 * 1 * 0.5 / 1.5, id="one line of two"),
        pytest.param(ONE_OF_TWO, ELSEWHERE, 0.0, id="disjoint"),
        pytest.param(LINE, np.zeros_like(LINE), 0.0, id="absent from the reference"),
        pytest.param(np.zeros_like(LINE), LINE, 0.0, id="absent from the prediction"),
        pytest.param(np.zeros_like(LINE), np.zeros_like(LINE), NAN, id="absent from both"),
    ],
)
@pytest.mark.parametrize("volume", [False, True], ids=["2D", "3D"])
def test_centerline_dice_counted_by_hand(pred, reference, expected, volume):
    if volume:
        pred, reference = (np.stack([np.zeros_like(mask), mask, np.zeros_like(mask)]) for mask in (pred, reference))
    assert mask_centerline_dice(pred, reference) == pytest.approx(expected, nan_ok=True)


def test_width_is_free_as_long_as_either_centreline_stays_inside():
    thin, thick = np.zeros((2, 11, 40), dtype=bool)
    thin[4:7, 2:-2] = True
    thick[2:9, 2:-2] = True
    assert mask_centerline_dice(thick, thin) == mask_centerline_dice(thin, thick) == 1


@pytest.mark.parametrize("size", [(4, 4, 4), (4, 4, 10), (8, 8, 8)], ids=str)
def test_object_that_thinning_deletes_still_counts(size):
    """scikit-image's 3D thinning leaves nothing of these boxes, and 0/0 would decide."""
    box = np.pad(np.ones(size, bool), 2)
    assert not skeletonize(box).any()
    assert mask_centerline_dice(box, box) == 1


def blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.7)
    return noise > np.quantile(noise, 0.7)


@pytest.mark.parametrize("shape", [(60, 70), (24, 30, 28)], ids=["2D", "3D"])
@pytest.mark.parametrize("seed", range(5))
def test_centerline_dice_equals_plain_scikit_image_where_thinning_loses_nothing(shape, seed):
    reference = _without_lost_components(blobs(seed, shape))
    pred = _without_lost_components(np.roll(reference, 2, axis=0))
    thin_pred, thin_reference = skeletonize(pred), skeletonize(reference)
    precision, sensitivity = reference[thin_pred].mean(), pred[thin_reference].mean()
    expected = 2 * precision * sensitivity / (precision + sensitivity)
    assert 0.1 < expected < 1
    assert mask_centerline_dice(pred, reference) == pytest.approx(expected, abs=1e-12)


def _without_lost_components(mask: np.ndarray) -> np.ndarray:
    components, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    kept = np.unique(components[skeletonize(mask)])
    return np.isin(components, kept[kept > 0])


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)])
def test_bounding_box_holds_all_and_no_more(shape):
    random = np.random.default_rng(0)
    for _ in range(50):
        mask = random.random(shape) < 0.05
        box = bounding_box(mask)
        assert mask[box].sum() == mask.sum()
        if mask.any():
            hits = np.argwhere(mask)
            assert [(side.start, side.stop) for side in box] == list(zip(hits.min(axis=0), hits.max(axis=0) + 1))
        else:
            assert mask[box].size == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_scores_of_classes_equal_those_of_whole_masks(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    random = np.random.default_rng(5)
    pred, reference = (
        random.integers(0, 5, (1, 40, 40, 30)).astype(np.uint8) * blobs(3, (40, 40, 30)) for _ in range(2)
    )
    classes = [0, 1, 2, 3, 4, 9]
    expected = [mask_betti_errors(pred[0] == index, reference[0] == index) for index in classes]
    np.testing.assert_equal(score_classes(mask_betti_errors, pred, reference, classes), expected)
    one_hot = np.stack([pred[0] == index for index in range(10)]).astype(np.uint8)
    np.testing.assert_equal(score_classes(mask_betti_errors, one_hot, reference, classes), expected)
    np.testing.assert_equal(score_classes(mask_betti_errors, pred, reference, [2, 9]), [expected[2], expected[5]])


@pytest.mark.parametrize(
    "pred, reference, expected",
    [
        pytest.param([1, 1, 1, 0], [0, 1, 1, 1], (2 / 3, 2 / 3), id="shifted"),
        pytest.param([1, 1, 1, 1], [0, 0, 0, 1], (0.25, 1), id="too much"),
        pytest.param([0, 0, 0, 0], [0, 1, 1, 1], (0, 0), id="nothing predicted"),
        pytest.param([1, 0, 0, 0], [0, 0, 0, 0], (0, 0), id="nothing there"),
    ],
)
def test_precision_and_recall_counted_by_hand(pred, reference, expected):
    found = mask_precision_recall(np.array([pred], bool), np.array([reference], bool))
    assert found == pytest.approx(expected)


def test_precision_and_recall_of_nothing_are_no_scores():
    assert np.isnan(mask_precision_recall(np.zeros((2, 2), bool), np.zeros((2, 2), bool))).all()
