"""Tests of the skeleton benchmark on volumes that take no time; the times themselves are not tested."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from shapes import bar, vessel_of_three_classes

from monai_skelrec import benchmark_skeletons as skeletons


def test_tubes_are_the_same_for_the_same_seed_and_have_a_class_each():
    label = skeletons.curved_tubes((40, 50, 30), 3)
    np.testing.assert_array_equal(label, skeletons.curved_tubes((40, 50, 30), 3))
    assert not np.array_equal(label, skeletons.curved_tubes((40, 50, 30), 3, seed=1))
    assert set(np.unique(label)) == {0, 1, 2, 3}


def test_speed_gives_a_row_a_case_and_writes_both_tables(tmp_path, monkeypatch):
    cases = [("odd", 1, vessel_of_three_classes()[0]), ("even", 1, bar(4, 4, 20)), ("tubes", 2, bar(5, 5, 9))]
    monkeypatch.setattr(skeletons, "_speed_cases", lambda: iter(cases))
    rows = skeletons.skeleton_speed(tmp_path, repeats=2)
    assert [row["what"] for row in rows] == ["odd", "even", "tubes"]
    assert [row["foreground"] for row in rows] == [(label > 0).sum() for _, _, label in cases]
    assert all(row["equal"] and row["ours_ms"] >= 0 for row in rows)
    assert len((tmp_path / "speed.md").read_text().splitlines()) == 5
    with open(tmp_path / "speed.csv") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_what_the_published_target_loses_is_counted_by_hand(tmp_path):
    label = np.zeros((24, 24, 40), np.uint8)
    label[2:9, 2:9, 2:38] = 1  # kept
    label[14:18, 14:18, 2:38] = 2  # even width: deleted, and with it the class
    label[2:4, 20:22, 2:4] = 1  # deleted, but its class has another component
    folder = tmp_path / "maps"
    folder.mkdir()
    np.save(folder / "a.npy", label)
    whole, patches = skeletons.lost_components([folder], tmp_path, patch_size=(24, 24, 40), patches=2)
    expected = {"maps": 1, "components": 3, "lost_published": 2, "lost_ours": 0, "bare_in_part": 0, "classes": 2}
    expected |= {"voxels": (label > 0).sum(), "classes_lost_published": 1, "classes_lost_ours": 0}
    assert {key: whole[key] for key in expected} == expected
    assert {key: patches[key] for key in expected} == {key: 2 * value for key, value in expected.items()}
    assert "| maps | whole maps |" in (tmp_path / "lost.md").read_text()


def test_folder_without_label_maps_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no label maps"):
        skeletons.lost_components([tmp_path], tmp_path)


def test_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    skeletons.published_against_ours(tmp_path / "docs" / "picture.png")
    assert 5_000 < (tmp_path / "docs" / "picture.png").stat().st_size < 150_000
