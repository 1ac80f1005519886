"""Linear interpolation along one axis: blocks, layouts and axes change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_skelrec import axis_maps
from monai_skelrec.axis_maps import AxisMap, interpolate


def places(positions):
    low = np.floor(positions).astype(int)
    weight = (positions - low).astype(np.float32)
    return AxisMap(*(torch.from_numpy(each) for each in (low, low + (weight > 0), weight)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("block", [1, 7, 10**6])
@pytest.mark.parametrize(
    "positions", [[0, 1.5, 3, 3.25], [4, 2, 0], [0, 0.1, 0.1, 3.9, 4]], ids=["up", "back", "often"]
)
def test_values_are_those_of_numpys_interpolation(axis, block, positions, monkeypatch):
    monkeypatch.setattr(axis_maps, "BLOCK", block)
    torch.manual_seed(0)
    volume = torch.rand(7, 6, 5).movedim(2, axis)  # five along the axis, which is not always contiguous
    found = interpolate(volume, axis, places(np.array(positions, float)))
    line = np.apply_along_axis(lambda values: np.interp(positions, range(5), values), axis, volume.numpy())
    np.testing.assert_allclose(found.numpy(), line, atol=1e-6)


def test_identity_is_the_volume_itself_and_the_volume_stays():
    volume = torch.rand(3, 4)
    before = volume.clone()
    assert interpolate(volume, 1, places(np.arange(4.0))) is volume
    interpolate(volume, 1, places(np.array([0.5, 1.5])))
    assert torch.equal(volume, before)


def test_one_axis_alone():
    found = interpolate(torch.tensor([0.0, 10.0]), 0, places(np.array([0.0, 0.25, 1.0])))
    assert found.tolist() == [0, 2.5, 10]
