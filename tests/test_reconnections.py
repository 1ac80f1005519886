"""Links between fragments, drawn by hand: where they lead, how thick they are, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_skelrec.reconnections import find_links, reconnect


def drawn(*rows: str) -> np.ndarray:
    return np.array([[0 if character == "." else int(character) for character in row] for row in rows], np.uint8)


def even(label: np.ndarray, value: float = 0.4, classes: int = 2) -> np.ndarray:
    """The same probability of every class wherever it is not the label."""
    return np.stack([np.where(label == index, 0.9, value) for index in range(classes)])


BROKEN = drawn("........", "111..111", "........")
WHOLE = drawn("........", "11111111", "........")


def test_a_gap_is_bridged_by_its_line():
    out, links = reconnect(BROKEN, even(BROKEN), max_gap=4)
    assert (out == WHOLE).all()
    (link,) = links
    assert link.index == 1 and set(link.fragments) == {1, 2}
    # from voxel to voxel of the class: two voxels between, three steps
    assert link.gap == pytest.approx(3) and link.probability == pytest.approx(0.4)


def test_the_way_follows_the_probabilities():
    probabilities = even(BROKEN, 0.01)
    probabilities[1][0, 3:5] = 0.45
    out, _ = reconnect(BROKEN, probabilities, max_gap=6)
    assert (out == drawn("...11...", "111..111", "........")).all()


@pytest.mark.parametrize("budget", [{"max_gap": 2.9}, {"max_gap": 4, "min_probability": 0.41}])
def test_beyond_the_budget_there_is_no_link(budget):
    out, links = reconnect(BROKEN, even(BROKEN), **budget)
    assert (out == BROKEN).all() and links == []


def test_the_budget_counts_in_the_unit_of_the_spacing():
    assert reconnect(BROKEN, even(BROKEN), max_gap=3, spacing=(9, 0.5))[1][0].gap == pytest.approx(1.5)
    assert reconnect(BROKEN, even(BROKEN), max_gap=3, spacing=(0.5, 2))[1] == []


def test_a_link_is_as_thick_as_the_ends():
    label = np.zeros((9, 9, 24), np.uint8)
    label[2:7, 2:7, :] = 1
    label[:, :, 10:13] = 0
    out, _ = reconnect(label, even(label), max_gap=6)
    assert ndimage.label(out, np.ones((3, 3, 3)))[1] == 1
    middle = out[:, :, 11]
    assert 9 <= middle.sum() <= 25 and not middle[:2].any() and not middle[:, 7:].any()


def test_a_thin_end_beside_a_trunk_joins_as_a_thin_link():
    label = np.zeros((12, 12, 20), np.uint8)
    label[7:12, 3:10, :] = 1
    label[0:4, 6, 10] = 1
    out, links = reconnect(label, even(label), max_gap=6)
    assert len(links) == 1 and out[4:7].sum() == 3


def test_other_classes_are_no_way_and_are_not_painted_over():
    label = drawn("...2...", "111211.", "...2...")
    out, links = reconnect(label, even(label, classes=3), max_gap=9)
    assert (out == label).all() and links == []


def test_n_fragments_get_n_minus_one_links_the_most_probable_first():
    label = drawn("11.11.11", "........", "........")
    probabilities = even(label, 0.3)
    out, links = reconnect(label, probabilities, max_gap=20)
    assert len(links) == 2 and (out[0] == 1).all()
    assert [link.probability for link in links] == sorted((link.probability for link in links), reverse=True)


def test_a_loop_is_not_closed():
    label = drawn("11.11", "1...1", "11111")
    out, links = reconnect(label, even(label), max_gap=9)
    assert (out == label).all() and links == []


def test_only_the_classes_named_are_repaired():
    label = drawn("11.11", ".....", "22.22")
    out, _ = reconnect(label, even(label, classes=3), max_gap=3, classes=[2])
    assert (out == drawn("11.11", ".....", "22222")).all()


def test_input_stays_and_so_does_the_dtype():
    before = BROKEN.copy()
    out, _ = reconnect(BROKEN, even(BROKEN), max_gap=4)
    assert (BROKEN == before).all() and out.dtype == BROKEN.dtype


def test_links_do_not_depend_on_how_the_volume_lies():
    label = np.zeros((14, 16, 12), np.uint8)
    label[2:5, 3, 4] = label[8:13, 3, 4] = 1
    label[2, 9, 2:4] = label[2, 9, 8:11] = 1
    random = np.random.default_rng(1).random((2, *label.shape)) * 0.2 + 0.3
    gaps = sorted(link.gap for link in find_links(label, random, max_gap=9, spacing=(1, 2, 3)))
    turned = np.flip(label.transpose(2, 0, 1), 1), np.flip(random.transpose(0, 3, 1, 2), 2)
    assert gaps == pytest.approx(sorted(link.gap for link in find_links(*turned, max_gap=9, spacing=(3, 1, 2))))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"must have shape \(classes, 3, 8\), got \(2, 3, 7\)"):
        find_links(BROKEN, np.zeros((2, 3, 7)), max_gap=1)
    with pytest.raises(ValueError, match="max_gap must be above 0, got 0"):
        find_links(BROKEN, even(BROKEN), max_gap=0)
    with pytest.raises(ValueError, match="min_probability must lie from 0 to 1, got 15"):
        find_links(BROKEN, even(BROKEN), max_gap=1, min_probability=15)
    with pytest.raises(ValueError, match="holds class 1, but there are probabilities of 1 classes"):
        find_links(BROKEN, even(BROKEN)[:1], max_gap=1)
