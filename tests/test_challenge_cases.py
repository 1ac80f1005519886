"""Statistics over cases counted by hand, and what cannot be scored."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_skelrec.challenge_cases import check_pair, describe_cases


def test_statistics_count_the_cases_that_have_a_number():
    cases = [{"Dice": 1.0, "who": "a"}, {"Dice": math.nan}, {"Dice": 0.0, "HD": 3}, {"Dice": 0.5, "HD": 3}]
    found = describe_cases(cases)
    assert found == {
        "Dice": {"mean": 0.5, "std": 0.5, "min": 0, "25pc": 0.25, "50pc": 0.5, "75pc": 0.75, "max": 1, "count": 3},
        "HD": {"mean": 3, "std": 0, "min": 3, "25pc": 3, "50pc": 3, "75pc": 3, "max": 3, "count": 2},
    }


def test_one_case_has_no_spread_and_no_value_no_mean():
    found = describe_cases([{"Dice": 0.5, "HD": math.nan}])
    assert found["Dice"]["mean"] == 0.5 and math.isnan(found["Dice"]["std"])
    assert found["HD"]["count"] == 0 and math.isnan(found["HD"]["mean"])


def test_no_cases_are_refused():
    with pytest.raises(ValueError, match="no cases to aggregate"):
        describe_cases([])


@pytest.mark.parametrize(
    "pred, spacing, message",
    [
        pytest.param(np.zeros((4, 4), int), None, r"pred must be a 3D label map of integers, got int64 of", id="2D"),
        pytest.param(np.zeros((4, 4, 4)), None, r"of integers, got float64 of shape \(4, 4, 4\)", id="floats"),
        pytest.param(np.zeros((4, 4, 5), int), None, r"one shape, got \(4, 4, 5\) and \(4, 4, 4\)", id="other shape"),
        pytest.param(np.zeros((4, 4, 4), int), (1, 1), r"spacing must be three positive .*\(1, 1\)", id="two steps"),
        pytest.param(np.zeros((4, 4, 4), int), (1, 0, 1), "spacing must be three positive", id="no step"),
    ],
)
def test_what_cannot_be_scored_is_refused(pred, spacing, message):
    with pytest.raises(ValueError, match=message):
        check_pair(pred, np.zeros((4, 4, 4), int), spacing)
