"""Which classes may touch, and what happens to fragments that touch others; drawn by hand, and on real maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monai_skelrec import circle_of_willis
from monai_skelrec.contacts import CONTACTS, allowed_contacts, fix_contacts
from monai_skelrec.label_maps import read_label_map
from monai_skelrec.tree_scores import label_contacts
from monai_skelrec.willis_topology import LABELS

ROI = Path(__file__).parents[2] / "shared" / "data" / "topcow_roi"
NAMES = ["background", "trunk", "R-arm", "L-arm", "R-hand", "L-hand"]
ALLOWED = allowed_contacts([("trunk", "R-arm"), ("trunk", "L-arm"), ("R-arm", "R-hand"), ("L-arm", "L-hand")], NAMES)


def drawn(*rows: str) -> np.ndarray:
    return np.array([[0 if character == "." else int(character) for character in row] for row in rows], np.uint8)


RIGHT = drawn("44222111333", "........355", "...........")


def test_a_map_that_obeys_the_table_stays():
    assert np.array_equal(fix_contacts(RIGHT, ALLOWED, NAMES), RIGHT)


def test_a_piece_of_the_right_arm_on_the_left_becomes_left():
    wrong = RIGHT.copy()
    wrong[0, 10] = 2  # touches the left arm and the left hand
    assert np.array_equal(fix_contacts(wrong, ALLOWED, NAMES), RIGHT)


def test_a_bridge_between_two_neighbours_of_the_other_side_becomes_that_side():
    names = ["background", "front", "R-link", "L-link", "back"]
    allowed = allowed_contacts([("front", "L-link"), ("back", "L-link")], names)
    allowed[2] = {5}
    label = drawn("1122244", ".......", "5522...")
    fixed = fix_contacts(label, allowed, [*names, "right back"])
    assert np.array_equal(fixed, drawn("1133344", ".......", "5522..."))


def test_without_names_a_piece_goes_to_the_class_that_it_touches_most():
    wrong = RIGHT.copy()
    wrong[0, 10] = 2
    fixed = fix_contacts(wrong, ALLOWED)
    assert fixed[0, 10] == 5  # of two neighbours of class 5 and two of class 3 ...
    fixed[0, 10] = 3
    assert np.array_equal(fixed, RIGHT)


def test_a_piece_inside_another_class_becomes_that_class():
    wrong = RIGHT.copy()
    wrong[0, 3] = 5  # a bit of the left hand in the right arm
    assert np.array_equal(fix_contacts(wrong, ALLOWED, NAMES), RIGHT)


def test_a_class_in_one_piece_is_not_judged():
    alone = drawn("44.111")
    assert np.array_equal(fix_contacts(alone, ALLOWED, NAMES, isolated="drop"), alone)


def test_isolated_fragments_stay_unless_they_are_to_go():
    broken = drawn("22.22111", "........")
    assert np.array_equal(fix_contacts(broken, ALLOWED, NAMES), broken)
    assert np.array_equal(fix_contacts(broken, ALLOWED, NAMES, isolated="drop"), drawn("...22111", "........"))


def test_where_no_piece_is_anchored_none_is_changed():
    floating = drawn("22.55.22", "........")
    assert np.array_equal(fix_contacts(floating, ALLOWED, NAMES, isolated="drop"), floating)


def test_input_and_dtype_stay():
    wrong = drawn("22.22111").astype(np.int32)
    before = wrong.copy()
    out = fix_contacts(wrong, ALLOWED, isolated="drop")
    assert np.array_equal(wrong, before) and out.dtype == np.int32


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="'foot' is none of the classes background, trunk"):
        allowed_contacts([("trunk", "foot")], NAMES)
    with pytest.raises(ValueError, match="isolated must be 'keep' or 'drop', got 'maybe'"):
        fix_contacts(RIGHT, ALLOWED, isolated="maybe")


def topcow_table():
    values = {name: value for value, name in LABELS.items()}
    return {tuple(sorted((values[one], values[other]))) for one, other in CONTACTS["topcow"]}


def test_phantoms_obey_the_table():
    for seed in range(8):
        touching = label_contacts(circle_of_willis(seed))
        # where three of the phantom's vessels meet in a point, each touches both others
        assert touching - {(2, 3), (5, 11), (7, 12), (5, 8), (7, 9)} <= topcow_table(), seed


def test_maps_by_experts_obey_the_table():
    maps = sorted(ROI.glob("*.nii.gz"))
    if not maps:
        pytest.skip("needs the development data")
    for path in maps:
        label, _ = read_label_map(path)
        assert label_contacts(label) <= topcow_table(), path.name
        names = ["background", *LABELS.values()]
        indices = np.searchsorted([0, *LABELS], label).astype(np.uint8)
        fixed = fix_contacts(indices, allowed_contacts(CONTACTS["topcow"], names), names)
        assert np.array_equal(fixed, indices), path.name
