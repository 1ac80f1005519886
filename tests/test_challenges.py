"""Every challenge is called alike, and says how each of its numbers is defined."""

from __future__ import annotations

import pickle
from fnmatch import fnmatchcase

import numpy as np
import pytest

from monai_skelrec import CHALLENGES, toothfairy2_scores, toothfairy3_scores, toothfairy_scores, topcow_scores


def tubes() -> tuple[np.ndarray, np.ndarray]:
    pred, reference = np.zeros((2, 12, 10, 8), np.uint8)
    reference[2:10, 3:6, 3:6] = 1
    pred[2:9, 3:6, 2:5] = 1
    return pred, reference


@pytest.mark.parametrize("name", CHALLENGES)
def test_every_number_has_a_convention_that_reads_as_part_of_a_sentence(name):
    challenge = CHALLENGES[name]
    case = challenge.score(*tubes(), (0.3, 0.3, 0.5))
    for key in (*case, *challenge.aggregate([case, case])):
        assert any(fnmatchcase(key, pattern) for pattern in challenge.conventions), key
    assert not any(sentence.endswith(".") for sentence in challenge.conventions.values())


def test_each_name_calls_its_function():
    spacing = (0.3, 0.3, 0.5)
    assert CHALLENGES["topcow"].score(*tubes(), spacing) == topcow_scores(*tubes(), spacing)
    assert CHALLENGES["toothfairy"].score(*tubes(), spacing) == toothfairy_scores(*tubes(), spacing)
    assert CHALLENGES["toothfairy2"].score(*tubes(), spacing) == toothfairy2_scores(*tubes())
    assert CHALLENGES["toothfairy3"].score(*tubes(), spacing) == toothfairy3_scores(*tubes())


@pytest.mark.parametrize("name", CHALLENGES)
def test_scoring_can_be_sent_to_other_processes(name):
    challenge = pickle.loads(pickle.dumps(CHALLENGES[name]))
    assert challenge == CHALLENGES[name]
