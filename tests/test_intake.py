"""Tests of what happens to a scan and its label right after they are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_skelrec.intake import CheckScan, CheckScand, MapLabelValues, MapLabelValuesd

TOPCOW = [*range(13), 15]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_values_become_their_place_in_the_list_all_at_once(dtype):
    label = np.array([[0, 3, 4, 3]], dtype)
    mapped = MapLabelValues([0, 3, 4])(label)
    np.testing.assert_array_equal(mapped, [[0, 1, 2, 1]])
    assert mapped.dtype == dtype
    np.testing.assert_array_equal(label, [[0, 3, 4, 3]])
    np.testing.assert_array_equal(MapLabelValues([2, 0, 1])(np.array([0, 1, 2], dtype)), [1, 2, 0])


def test_topcow_values_map_to_fourteen_indices():
    np.testing.assert_array_equal(MapLabelValues(TOPCOW)(np.array(TOPCOW)), np.arange(14))


def test_other_values_become_background_on_request():
    mapped = MapLabelValues([0, 3, 4], "background")(np.array([0, 1, 2, 3, 4, 5, 250, 30000, -7]))
    np.testing.assert_array_equal(mapped, [0, 0, 0, 1, 2, 0, 0, 0, 0])
    small = MapLabelValues([0, 255], "background")(np.array([0, 1, 254, 255], np.uint8))
    np.testing.assert_array_equal(small, [0, 0, 0, 1])
    assert small.dtype == np.uint8


def test_container_affine_and_metadata_are_kept():
    tensor = MapLabelValues([0, 7])(torch.tensor([[0, 7]], dtype=torch.int32))
    assert type(tensor) is torch.Tensor and tensor.dtype == torch.int32 and tensor.tolist() == [[0, 1]]
    label = MetaTensor(torch.tensor([[[0.0, 7]]]), affine=np.diag([2, 3, 4, 1.0]), meta={"filename_or_obj": "a"})
    sample = MapLabelValuesd("label", [0, 7])({"label": label, "image": 1})
    assert isinstance(sample["label"], MetaTensor) and sample["label"].tolist() == [[[0, 1]]]
    assert sample["label"].meta["filename_or_obj"] == "a" and label.tolist() == [[[0, 7]]]
    np.testing.assert_array_equal(sample["label"].affine, label.affine)


def test_missing_key_is_left_out_on_request():
    assert MapLabelValuesd("label", [0, 1], allow_missing_keys=True)({"image": 1}) == {"image": 1}
    assert CheckScand("scan", allow_missing_keys=True)({"image": 1}) == {"image": 1}


@pytest.mark.parametrize(
    "values, message",
    [
        ([0, 9, 3, 13], "The label jaw.mha does not fit.*not in label_values: 9.*13.*'background'"),
        ([0, 1], "not in label_values: 1"),
        ([0, 3.5], "The label jaw.mha must hold whole numbers, got 3.5"),
        ([0, np.nan], "The label jaw.mha must hold whole numbers, got nan"),
        ([0, np.inf], "The label jaw.mha must hold whole numbers, got inf"),
    ],
)
def test_wrong_value_is_told_with_the_file(values, message):
    label = MetaTensor(torch.tensor([values]), meta={"filename_or_obj": "jaw.mha"})
    with pytest.raises(ValueError, match=message):
        MapLabelValues([0, 3, 4])(label)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([],), "label_values must be whole numbers, each once"),
        (([0, 1, 1],), "label_values must be whole numbers, each once"),
        (([0, 1.5],), "label_values must be whole numbers, each once"),
        (([0, 1], "ignore"), "other_values must be .*got 'ignore'"),
    ],
)
def test_wrong_argument_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        MapLabelValues(*arguments)


@pytest.mark.parametrize("container", [np.asarray, torch.as_tensor, lambda array: MetaTensor(torch.as_tensor(array))])
def test_good_scan_passes_unchanged(container):
    image = container(np.ones((1, 4, 5, 6), np.float32))
    assert CheckScan(spatial_dims=3, channels=1)(image) is image
    assert CheckScand("image")({"image": image})["image"] is image


@pytest.mark.parametrize(
    "image, message",
    [
        (torch.zeros(1, 3, 0, 2), r"The scan a.nii has no voxels, its shape is \(1, 3, 0, 2\)"),
        (torch.zeros(1, 3, 3, 3, 3), r"The scan a.nii must have 3 spatial axes after its channel, got shape"),
        (torch.zeros(1, 3, 3), r"The scan a.nii must have 3 spatial axes"),
        (torch.zeros(2, 3, 3, 3), r"The scan a.nii must have 1 channel\(s\), got shape \(2, 3, 3, 3\)"),
        (torch.full((1, 2, 2, 2), torch.nan), "The scan a.nii has 8 values that are NaN or infinite"),
        (torch.full((1, 2, 2, 1), -torch.inf), "The scan a.nii has 4 values that are NaN or infinite"),
    ],
)
def test_scan_that_no_network_can_read_is_told_with_the_file(image, message):
    scan = MetaTensor(image, meta={"filename_or_obj": "a.nii"})
    with pytest.raises(ValueError, match=message):
        CheckScand("image", spatial_dims=3, channels=1)({"image": scan})


def test_numpy_scan_is_checked_too():
    with pytest.raises(ValueError, match="The scan has 1 values that are NaN"):
        CheckScan()(np.array([[1.0, np.nan]]))
