"""Patches: where they lie and what they hold, at the border of a scan, without some classes, in two dimensions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ClassesToIndicesd, Compose, SpatialCrop

from monai_skelrec import RandPatchd, TubedSkeletond, check_order
from monai_skelrec.patches import cut_patch, draw_matrix, draw_start, rotation_limits

SHAPE, PATCH = (20, 16, 12), (8, 6, 4)


def scan_of(label):
    sample = {"image": torch.from_numpy(label[None]).float() + 100, "label": torch.from_numpy(label[None])}
    return ClassesToIndicesd("label", num_classes=4, max_samples_per_class=50)(sample)


def three_classes():
    """Class 1 fills a third of the scan, class 2 is one voxel, class 3 is absent."""
    label = np.zeros(SHAPE, np.uint8)
    label[:7] = 1
    label[15, 9, 6] = 2
    return label


def draw(label, share, count=300, **knobs):
    patch = RandPatchd(["image", "label"], PATCH, "label_cls_indices", foreground_share=share, **knobs)
    patch.set_random_state(seed=0)
    scan = scan_of(label)
    return [patch(scan)["label"][0].numpy() for _ in range(count)]


def test_half_of_the_patches_are_centred_on_classes_that_are_drawn_evenly():
    everywhere = [(patch == 2).any() for patch in draw(three_classes(), 0.0)]
    both = [(patch == 2).any() for patch in draw(three_classes(), 0.5)]
    always = [patch[4, 3, 2] for patch in draw(three_classes(), 1.0)]
    # a patch of 8 x 6 x 4 voxels somewhere holds a voxel of the middle in 192 of the 13 x 11 x 9 places
    assert np.mean(everywhere) == pytest.approx(192 / (13 * 11 * 9), abs=0.05)
    # with class 1 and class 2 as likely, class 2 comes in half of that half
    assert np.mean(both) == pytest.approx(0.5 * 192 / (13 * 11 * 9) + 0.25, abs=0.06)
    assert np.mean([value == 2 for value in always]) == pytest.approx(0.5, abs=0.08)


def test_absent_classes_and_scans_without_foreground_draw_anywhere_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patches = draw(np.zeros(SHAPE, np.uint8), 1.0, count=20)
    assert all(patch.shape == PATCH for patch in patches)


def test_every_voxel_of_a_scan_can_be_reached_and_patches_stay_inside():
    random = np.random.RandomState(0)
    starts = np.stack([draw_start(random, SHAPE, PATCH) for _ in range(3000)])
    np.testing.assert_array_equal(starts.min(0), 0)
    np.testing.assert_array_equal(starts.max(0), np.subtract(SHAPE, PATCH))
    corner = [np.array([]), np.array([0]), np.array([np.prod(SHAPE) - 1])]
    for seed in range(10):
        start = draw_start(np.random.RandomState(seed), SHAPE, PATCH, corner, foreground_share=1.0)
        assert (start == 0).all() or (start == np.subtract(SHAPE, PATCH)).all()


def test_a_scan_smaller_than_the_patch_lies_in_its_middle_among_zeros():
    scan = torch.ones(1, 4, 3, 9)
    patch = RandPatchd("image", (8, 6, 4), mode="bilinear")({"image": scan})["image"][0]
    expected = torch.zeros(8, 6, 4)
    expected[2:6, 2:5] = 1  # one voxel more in front where the room is odd
    torch.testing.assert_close(patch, expected)


def test_a_plain_patch_equals_monais_crop_and_is_a_copy():
    volume = torch.arange(float(np.prod(SHAPE))).reshape(1, *SHAPE)
    (patch,) = cut_patch([volume], ["bilinear"], np.array([3, 2, 1]), PATCH)
    torch.testing.assert_close(patch, SpatialCrop(roi_start=[3, 2, 1], roi_end=[11, 8, 5])(volume).as_tensor())
    before = volume.clone()
    patch.zero_()
    assert torch.equal(volume, before)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_quarter_turn_is_numpys(dims):
    volume = torch.rand(2, *(9,) * dims)
    quarter = np.eye(dims)
    quarter[:2, :2] = [[0, -1], [1, 0]]
    turned, label = cut_patch([volume, volume], ["bilinear", "nearest"], np.zeros(dims), (9,) * dims, quarter)
    # a step along the patch's first axis is one along the scan's second
    expected = torch.rot90(volume, -1, (1, 2))
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(label, expected)


def test_a_factor_above_one_shows_more_of_the_scan_and_zeros_beyond():
    ramp = torch.arange(20.0).reshape(1, 20, 1, 1).expand(1, 20, 5, 5)
    (patch,) = cut_patch([ramp], ["bilinear"], np.array([8, 0, 0]), (5, 5, 5), np.diag([2.0, 1, 1]))
    assert patch[0, :, 2, 2].tolist() == [6, 8, 10, 12, 14]
    (outside,) = cut_patch([ramp + 1], ["nearest"], np.array([16, 0, 0]), (4, 5, 5), np.diag([3.0, 1, 1]))
    assert outside[0, :, 2, 2].tolist() == [14, 17, 20, 0]


def test_rotation_limits_are_nnunets():
    assert rotation_limits([160, 192, 80]) == (30.0, (0, 1, 2))
    assert rotation_limits([96, 96, 8]) == (180.0, (0, 1))
    assert rotation_limits([8, 96, 96]) == (180.0, (1, 2))
    assert rotation_limits([512, 512]) == (180.0, (0, 1))
    assert rotation_limits([512, 256]) == (15.0, (0, 1))


def test_matrix_turns_and_scales_in_the_given_axes_only():
    random = np.random.RandomState(0)
    matrix = draw_matrix(random, 3, (0, 1), max_angle=180, scale_range=(0.7, 1.4), rotate=True, scale=True)
    np.testing.assert_allclose(matrix[2], [0, 0, 1])
    factor = np.sqrt(np.linalg.det(matrix))
    assert 0.7 <= factor <= 1.4
    np.testing.assert_allclose(matrix[:2, :2] @ matrix[:2, :2].T, factor**2 * np.eye(2), atol=1e-12)
    angles = []
    for _ in range(500):
        turn = draw_matrix(random, 2, (0, 1), max_angle=15, scale_range=(1, 1), rotate=True, scale=False)
        angles.append(np.rad2deg(np.arctan2(turn[1, 0], turn[0, 0])))
    assert -15 <= min(angles) < -14 and 14 < max(angles) <= 15


@pytest.mark.parametrize(
    "knobs",
    [{"rotate_prob": 1.0}, {"scale_prob": 1.0, "scale_range": (1.3, 1.4)}, {"rotate_prob": 1.0, "max_angle": 1e-3}],
)
def test_every_knob_changes_the_patch(knobs):
    label = (np.random.default_rng(0).random(SHAPE) > 0.5).astype(np.uint8)
    plain, changed = (draw(label, 0.0, count=1, **k)[0] for k in ({}, knobs))
    assert (plain != changed).any() == ("max_angle" not in knobs)  # a thousandth of a degree moves no voxel


def test_affine_says_where_the_patch_lies():
    """The place in space of a marked voxel is the same in the scan and in the patch."""
    affine = torch.tensor([[-0.5, 0, 0, 20], [0, 0.5, 0, 3], [0, 0, 2, -7], [0, 0, 0, 1.0]], dtype=torch.float64)
    blob = torch.zeros(1, 30, 30, 30)
    blob[0, 13:18, 15:20, 14:19] = 1
    sample = {"image": MetaTensor(blob, affine=affine, meta={"filename_or_obj": "scan.nii"})}
    transform = RandPatchd("image", (28, 28, 28), rotate_prob=1.0, scale_prob=1.0, mode="bilinear")
    for seed in range(3):
        patch = transform.set_random_state(seed=seed)(sample)["image"]
        weights = patch.as_tensor()[0].numpy()
        centre = [np.average(axis, weights=weights) for axis in np.indices(weights.shape)]
        np.testing.assert_allclose(patch.affine.numpy() @ [*centre, 1], affine.numpy() @ [15, 17, 16, 1], atol=0.1)
        assert patch.meta["filename_or_obj"] == "scan.nii"


def test_pictures_work_and_keep_their_channels_and_dtypes():
    sample = {"image": torch.rand(3, 40, 30), "label": torch.ones(1, 40, 30, dtype=torch.uint8)}
    patch = RandPatchd(["image", "label"], (16, 24), rotate_prob=1.0)(sample)
    assert patch["image"].shape == (3, 16, 24) and patch["label"].shape == (1, 16, 24)
    assert patch["image"].dtype == torch.float32 and patch["label"].dtype == torch.uint8


def test_indices_leave_the_sample_and_the_input_stays():
    scan = scan_of(three_classes())
    patch = RandPatchd(["image", "label"], PATCH, "label_cls_indices")(scan)
    assert "label_cls_indices" not in patch and "label_cls_indices" in scan
    np.testing.assert_array_equal(scan["label"][0], three_classes())


def test_skeleton_before_the_patch_is_found():
    with pytest.raises(ValueError, match="RandPatchd stands after the tubed skeleton"):
        check_order(Compose([TubedSkeletond("label"), RandPatchd("label", (8, 8, 8), mode="nearest")]))


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="rotate_prob must be within 0 and 1, got 1.5"):
        RandPatchd("image", PATCH, rotate_prob=1.5)
    with pytest.raises(ValueError, match="mode must be 'bilinear' or 'nearest' for each key, got cubic"):
        RandPatchd("image", PATCH, mode="cubic")
    with pytest.raises(ValueError, match="scale_range must be two factors above 0, the smaller first"):
        RandPatchd("image", PATCH, mode="bilinear", scale_range=(1.4, 0.7))
    with pytest.raises(ValueError, match="has no 'nowhere'; put ClassesToIndicesd before RandPatchd"):
        RandPatchd(["image"], PATCH, "nowhere", mode="bilinear")({"image": torch.ones(1, *SHAPE)})
    with pytest.raises(
        ValueError, match=r"must share a grid of 3 axes \(patch_size \[8, 6, 4\]\), got shapes \(1, 5, 5\)"
    ):
        RandPatchd("image", PATCH, mode="bilinear")({"image": torch.ones(1, 5, 5)})
