"""Planted faults are where they should be, and the comparison of repairs counts them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_skelrec import circle_of_willis
from monai_skelrec.benchmark_repairs import compare_repairs, random_repair
from monai_skelrec.planted_faults import plant_faults
from monai_skelrec.reconnections import reconnect


@pytest.fixture(scope="module")
def reference():
    return (circle_of_willis(1) > 0).astype(np.uint8)


def test_without_faults_the_network_is_right(reference):
    planted = plant_faults(reference, 2, 1, breaks=0, decoys=0)
    assert np.array_equal(planted.label, reference)
    np.testing.assert_allclose(planted.probabilities.sum(axis=0), 1, atol=1e-6)


def test_breaks_take_vessel_away_and_leave_a_trace(reference):
    planted = plant_faults(reference, 2, 1, breaks=6, decoys=0)
    lost = (planted.label == 0) & (reference > 0)
    assert lost.any() and not (planted.label > reference).any()
    assert planted.probabilities[1][lost].min() > 0.04


def test_decoys_lead_through_background_and_stay_below_the_vessel(reference):
    clean = plant_faults(reference, 2, 1, breaks=0, decoys=0)
    planted = plant_faults(reference, 2, 1, breaks=0, decoys=6)
    raised = planted.probabilities[1] > clean.probabilities[1] + 0.03
    assert raised.any() and not (raised & (reference > 0)).any() and np.array_equal(planted.label, reference)


def test_strays_win_voxels_for_other_classes():
    label = circle_of_willis(1)
    label[label == 15] = 13
    planted = plant_faults(label, 14, 1, breaks=0, decoys=0, strays=6)
    assert ((planted.label != label) & (planted.label > 0)).sum() > 20


def test_random_repair_draws_as_many_links_as_reconnect(reference):
    planted = plant_faults(reference, 2, 4, breaks=8)
    repaired, links = reconnect(planted.label, planted.probabilities, max_gap=8, min_probability=0)
    chance = random_repair(planted, 8)
    assert links and (chance >= planted.label).all() and not np.array_equal(chance, repaired)
    around = np.ones((3, 3, 3))
    assert ndimage.label(repaired, around)[1] < ndimage.label(planted.label, around)[1]


def test_the_tables_hold_every_repair(tmp_path):
    text = compare_repairs(tmp_path, cases=1, kinds=["canals in a jaw"])
    assert text == (tmp_path / "repairs.md").read_text()
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("| canals in a jaw")]
    assert [row[1] for row in rows][:2] == ["nothing", "random links"] and rows[0][3] == "0%"
    assert int(rows[2][2]) <= int(rows[0][2])
