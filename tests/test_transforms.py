"""Tests of the tubed skeleton in MONAI pipelines."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import (
    Compose,
    ConcatItemsd,
    EnsureTyped,
    OneOf,
    Rand3DElasticd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGridDistortiond,
    RandRotate90,
    RandSimulateLowResolutiond,
    RandSmoothDeformd,
    RandSpatialCropSamplesd,
    RandZoomd,
    Spacingd,
    SpatialPadd,
)
from shapes import bar, jaw_with_canal, vessel_of_three_classes

from monai_skelrec import transforms
from monai_skelrec.skeletons import tubed_skeleton
from monai_skelrec.transforms import TubedSkeleton, TubedSkeletond, check_order

LABEL = vessel_of_three_classes()[0][np.newaxis]
TUBE = tubed_skeleton(LABEL[0])[np.newaxis]


@pytest.mark.parametrize("name", ["TubedSkeleton", "MapLabelValues", "CheckScan"])
def test_dictionary_transform_has_its_aliases(name):
    assert getattr(transforms, f"{name}D") is getattr(transforms, f"{name}Dict") is getattr(transforms, f"{name}d")
    assert {name, f"{name}d", f"{name}D", f"{name}Dict"} <= set(transforms.__all__)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float16, np.float32])
def test_numpy_array_keeps_its_dtype(dtype):
    label = LABEL.astype(dtype)
    tube = TubedSkeleton()(label)
    assert isinstance(tube, np.ndarray) and tube.dtype == label.dtype
    np.testing.assert_array_equal(tube, TUBE.astype(dtype))


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.half, torch.bfloat16, torch.float]
)
def test_tensor_keeps_its_dtype_and_device(dtype, device):
    label = torch.as_tensor(LABEL).to(device, dtype)
    tube = TubedSkeleton()(label)
    assert type(tube) is torch.Tensor and tube.dtype == dtype and tube.device == label.device
    assert torch.equal(tube.cpu(), torch.as_tensor(TUBE).to(dtype))


def test_meta_tensor_keeps_affine_and_metadata_and_the_label_stays_as_it_is():
    affine = np.diag([0.3, 0.4, 0.5, 1.0])
    label = MetaTensor(torch.as_tensor(LABEL).float(), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    before = label.clone()
    sample = TubedSkeletond("label")({"label": label, "image": 1})
    tube = sample["skeleton"]
    assert isinstance(tube, MetaTensor) and tube.dtype == torch.float32
    np.testing.assert_array_equal(tube.affine, affine)
    assert tube.meta["filename_or_obj"] == "a.nii.gz" and tube.meta is not label.meta
    np.testing.assert_array_equal(tube.numpy(), TUBE)
    assert sample["label"] is label and torch.equal(label, before) and sample["image"] == 1


def test_every_argument_reaches_the_function():
    label = jaw_with_canal()[0][:, :, :40]
    for arguments in [
        {"radius": 1},
        {"groups": "each"},
        {"groups": [[2]]},
        {"ignore_index": 1},
        {"radius": 0.9, "spacing": (0.3, 0.3, 0.6)},
    ]:
        expected = tubed_skeleton(label, **arguments)
        assert not np.array_equal(expected, tubed_skeleton(label))
        np.testing.assert_array_equal(TubedSkeleton(**arguments)(label[np.newaxis])[0], expected)
        sample = TubedSkeletond("label", "tube", **arguments)({"label": label[np.newaxis]})
        np.testing.assert_array_equal(sample["tube"][0], expected)
    even = bar(4, 4, 9)[np.newaxis]
    assert TubedSkeleton()(even).any() and not TubedSkeleton(restore_lost=False)(even).any()


def test_spacing_meta_reads_the_voxel_size_from_the_affine():
    # turned by 90 degrees: the third axis of the array runs along the first of the world
    affine = np.array([[0, 0, -0.8, 7], [0.4, 0, 0, 2], [0, 0.5, 0, 1], [0, 0, 0, 1.0]])
    label = MetaTensor(torch.as_tensor(LABEL), affine=affine)
    tube = TubedSkeleton(1.1, spacing="meta")(label)
    np.testing.assert_array_equal(tube[0].numpy(), tubed_skeleton(LABEL[0], 1.1, spacing=(0.4, 0.5, 0.8)))
    flat = MetaTensor(torch.as_tensor(LABEL[..., 20]), affine=np.diag([0.4, 0.5, 1.0]))
    tube = TubedSkeleton(1.1, spacing="meta")(flat)
    np.testing.assert_array_equal(tube[0].numpy(), tubed_skeleton(LABEL[0, ..., 20], 1.1, spacing=(0.4, 0.5)))


def test_each_of_several_channels_is_thinned_alone_and_regions_may_overlap():
    jaw = jaw_with_canal()[0][:, :, :50]
    regions = np.stack([jaw > 0, jaw == 2]).astype(np.uint8)
    tube = TubedSkeleton()(torch.as_tensor(regions))
    for region, one in zip(regions, tube):
        np.testing.assert_array_equal(one, tubed_skeleton(region))
    assert (tube[1] > 0).any() and tube.dtype == torch.uint8


def test_voxel_ignored_in_one_channel_is_ignored_in_all():
    regions = np.zeros((2, 9, 30), np.uint8)
    regions[:, 2:7, 2:28] = 1
    marked = regions.copy()
    marked[0, :, 14:] = 255
    regions[..., 14:] = 0
    np.testing.assert_array_equal(TubedSkeleton(ignore_index=255)(marked), TubedSkeleton()(regions))


def test_several_keys_get_a_skeleton_each_and_missing_ones_are_left_out_on_request():
    transform = TubedSkeletond(["a", "b"], ["a_tube", "b_tube"], allow_missing_keys=True)
    sample = transform({"b": LABEL})
    assert set(sample) == {"b", "b_tube"}
    np.testing.assert_array_equal(sample["b_tube"], TUBE)
    with pytest.raises(KeyError, match="a"):
        TubedSkeletond(["a", "b"], ["a_tube", "b_tube"])({"b": LABEL})


def test_lazy_pipeline_applies_what_is_pending_before_it_thins():
    steps = [
        EnsureTyped(["image", "label"]),
        Spacingd(["image", "label"], (1, 1, 2), mode=("bilinear", "nearest")),
        RandFlipd(["image", "label"], prob=1, spatial_axis=2),
        TubedSkeletond("label"),
        ConcatItemsd(["label", "skeleton"], "target"),
    ]
    data = {"image": LABEL.astype(np.float32), "label": LABEL.astype(np.float32)}
    eager = Compose(steps)(data)
    lazy = Compose(steps, lazy=True, overrides={"label": {"mode": "nearest"}})(data)
    assert eager["label"].shape[-1] < LABEL.shape[-1]
    for sample in (eager, lazy):
        label, tube = sample["target"].numpy()
        np.testing.assert_array_equal(tube, tubed_skeleton(label))
    np.testing.assert_array_equal(lazy["target"], eager["target"])


def test_samples_of_a_multi_sample_crop_come_through_worker_processes():
    steps = Compose(
        [RandSpatialCropSamplesd(["label"], (11, 11, 24), num_samples=3, random_size=False), TubedSkeletond("label")]
    )
    data = Dataset([{"label": MetaTensor(torch.as_tensor(LABEL))}] * 2, steps)
    loader = DataLoader(data, batch_size=2, num_workers=2, collate_fn=list_data_collate)
    (batch,) = loader
    assert batch["skeleton"].shape == (6, 1, 11, 11, 24)
    for sample in decollate_batch(batch):
        np.testing.assert_array_equal(sample["skeleton"][0], tubed_skeleton(sample["label"][0].numpy()))


def test_transform_survives_pickling():
    transform = pickle.loads(pickle.dumps(TubedSkeletond("label", groups="each", spacing=(1, 1, 2), radius=2)))
    np.testing.assert_array_equal(
        transform({"label": LABEL})["skeleton"][0], tubed_skeleton(LABEL[0], 2, groups="each", spacing=(1, 1, 2))
    )


@pytest.mark.parametrize(
    "label, arguments, message",
    [
        (np.ones((4, 5), int), {}, r"needs a channel and 2 or 3 axes.*got shape \(4, 5\)"),
        (np.ones((1, 2, 3, 4, 5), int), {}, r"needs a channel and 2 or 3 axes.*got shape \(1, 2, 3, 4, 5\)"),
        (np.full((1, 4, 5), 0.5), {}, "label must hold integers.*0.5"),
        (torch.full((1, 4, 5), torch.nan), {}, "label must hold integers.*nan"),
        (np.full((2, 4, 5), 2), {}, "needs 0 and 1 in each of several channels"),
        (np.ones((2, 4, 5), int), {"groups": "each"}, "groups is for one channel of class indices, got 2 channels"),
        (np.ones((1, 4, 5), int), {"spacing": "meta"}, 'spacing="meta" needs a MetaTensor'),
        (torch.ones(1, 4, 5), {"spacing": "meta"}, 'spacing="meta" needs a MetaTensor'),
        (np.ones((1, 4, 5), int), {"spacing": (1, 1, 1)}, "spacing must have 2 values"),
    ],
)
def test_label_that_does_not_fit_is_told_in_one_sentence(label, arguments, message):
    with pytest.raises(ValueError, match=message):
        TubedSkeleton(**arguments)(label)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"radius": -1}, "radius must be a number from 0"),
        ({"spacing": "affine"}, 'spacing must be None, "meta" or one value an axis, got "affine"'),
        ({"spacing": (1, 0, 1)}, "spacing must be positive"),
        ({"groups": "both"}, 'groups must be None, "each"'),
        ({"groups": [[1], [1]]}, "groups must name each label once"),
        ({"ignore_index": 0}, "ignore_index must differ from 0"),
    ],
)
def test_wrong_argument_is_told_when_the_transform_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        TubedSkeletond("label", **arguments)


def test_two_labels_may_not_share_a_skeleton_key():
    with pytest.raises(ValueError, match="skeleton_keys must name one key for each of"):
        TubedSkeletond(["a", "b"])


# --- order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "late",
    [
        RandFlipd(["image", "label"]),
        RandZoomd("skeleton"),
        RandCropByPosNegLabeld(["image", "label"], "label", (3, 3, 3)),
        RandGridDistortiond("label"),
        RandSmoothDeformd("label", (9, 9, 9), (3, 3, 3)),
        OneOf([Rand3DElasticd("label", (1, 2), (1, 2))]),
        Compose([Compose([RandSpatialCropSamplesd("skeleton", (3, 3, 3), num_samples=1)])]),
    ],
    ids=lambda late: type(late).__name__,
)
def test_random_spatial_transform_after_the_skeleton_is_found(late):
    with pytest.raises(ValueError, match="Rand[A-Za-z0-9]+ stands after the tubed skeleton"):
        check_order(Compose([EnsureTyped("label"), Compose([TubedSkeletond("label")]), late]))


def test_random_spatial_array_transform_after_the_skeleton_is_found():
    with pytest.raises(ValueError, match="RandRotate90 stands after the tubed skeleton"):
        check_order(Compose([TubedSkeleton(), RandRotate90()]))


def test_right_order_and_transforms_that_leave_the_label_alone_pass():
    check_order(
        Compose(
            [
                RandFlipd(["image", "label"]),
                RandZoomd(["image", "label"]),
                TubedSkeletond("label"),
                RandGaussianNoised("image"),
                RandSimulateLowResolutiond("image"),
                SpatialPadd(["image", "label", "skeleton"], (30, 30, 30)),
                ConcatItemsd(["label", "skeleton"], "label"),
            ]
        )
    )
    check_order(Compose([RandFlipd("label")]))
