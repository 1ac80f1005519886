"""The benchmark of scoring measures two ways that agree."""

from __future__ import annotations

import numpy as np
import pytest

from monai_skelrec.benchmark_scores import MEASURED, naive_scores, vessel_pair
from monai_skelrec.mask_measures import measure_masks


def test_prediction_is_off_and_has_gaps_and_the_tubes_stay_in_their_box():
    pred, reference = vessel_pair((60, 60, 40), (40, 40, 30), 6)
    assert not np.array_equal(pred, reference) and set(np.unique(reference)) <= set(range(14))
    assert not reference[:10].any() and not reference[50:].any() and not reference[..., :5].any()


@pytest.mark.parametrize("index", [1, 2])
def test_naive_scores_are_ours(index):
    pred, reference = (volume == index for volume in vessel_pair((50, 50, 40), (50, 50, 40), 6))
    ours = measure_masks(pred, reference, MEASURED, spacing=(0.4, 0.4, 0.65))
    assert naive_scores(pred, reference) == pytest.approx(ours, rel=1e-5)
