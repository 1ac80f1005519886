"""Left and right: a mirror image in which partners change places, by hand and against MONAI's own flip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd

from monai_skelrec import RandFlipSidesd, TubedSkeletond, circle_of_willis
from monai_skelrec.sides import pair_indices, side_pairs, swap_sides

NAMES = ["background", "BA", "R-ICA", "L-ICA"]
PAIRS = [["R-ICA", "L-ICA"]]


def scan():
    torch.manual_seed(0)
    label = MetaTensor(
        torch.randint(0, 4, (1, 5, 4, 3), dtype=torch.uint8), affine=torch.diag(torch.tensor([2.0, 3, 4, 1]))
    )
    return {"image": MetaTensor(torch.rand(1, 5, 4, 3)), "label": label}


def by_hand(label):
    """Flipped and renamed, with NumPy."""
    return np.array([0, 1, 3, 2])[np.asarray(label)[:, ::-1]]


def test_sides_are_told_by_whole_words():
    names = ["background", "R-ICA", "L-ICA", "Acom", "Right_vein", "left_vein", "L-only", "gallr", "galll"]
    assert side_pairs(names) == {1: 2, 2: 1, 4: 5, 5: 4}


def test_pairs_of_other_tasks_are_left_out():
    assert pair_indices(NAMES, [["L-ICA", "R-ICA"], ["left canal", "right canal"]]) == {2: 3, 3: 2}
    assert pair_indices(["background", "vessel"], PAIRS) == pair_indices(NAMES, None) == {}
    with pytest.raises(ValueError, match="the classes are not named"):
        pair_indices([], PAIRS)


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([["R-ICA", "L-PCA"]], r"must be pairs of classes .* got \['R-ICA', 'L-PCA'\]; the classes are background"),
        ([["R-ICA"]], r"must be pairs of classes .* got \['R-ICA'\]"),
        (["BA"], "must be pairs of classes .* got BA"),
        ([["R-ICA", "L-ICA"], ["BA", "R-ICA"]], "must hold each class once"),
        ([["BA", "BA"]], "must hold each class once"),
        ([["background", "BA"]], r"got \['background', 'BA'\]"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        pair_indices(NAMES, pairs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_partners_change_and_everything_else_stays(dtype):
    label = torch.tensor([0, 1, 2, 3, 9, 2], dtype=dtype)
    swapped = swap_sides(label, {2: 3, 3: 2})
    assert swapped.dtype == dtype and swapped.tolist() == [0, 1, 3, 2, 9, 3]
    assert label.tolist() == [0, 1, 2, 3, 9, 2]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_mirror_image_has_its_classes_on_the_other_side(lazy):
    data = scan()
    kept = {key: value.clone() for key, value in data.items()}
    steps = Compose([RandFlipSidesd(["image", "label"], "label", NAMES, PAIRS, prob=1.0, lazy=lazy)])
    flipped = steps(data)
    assert np.array_equal(flipped["label"], by_hand(data["label"])) and flipped["label"].dtype == torch.uint8
    assert np.array_equal(flipped["image"], np.asarray(data["image"])[:, ::-1])
    # where it lies in space is what MONAI's flip says
    plain = Compose([RandFlipd(["image", "label"], prob=1.0, spatial_axis=0, lazy=lazy)])(data)
    assert torch.equal(flipped["label"].affine, plain["label"].affine)
    assert all(torch.equal(data[key], kept[key]) for key in data)
    if not lazy:  # MONAI's own lazy flip leaves its inverse pending
        back = steps.inverse(flipped)
        assert all(torch.equal(back[key], kept[key]) for key in kept)


def test_what_was_not_flipped_keeps_its_sides_there_and_back():
    flip, data = RandFlipSidesd(["image", "label"], "label", NAMES, PAIRS, prob=0.0), scan()
    same = flip(data)
    assert torch.equal(same["label"], data["label"]) and torch.equal(flip.inverse(same)["label"], data["label"])


def test_without_partners_it_is_monais_flip_with_the_same_random_numbers():
    ours = RandFlipSidesd(["image", "label"], "label", NAMES, [], prob=0.5)
    theirs = RandFlipd(["image", "label"], prob=0.5, spatial_axis=0)
    ours.set_random_state(3)
    theirs.set_random_state(3)
    for _ in range(20):
        found, expected = ours(scan()), theirs(scan())
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_the_mirror_image_of_a_symmetric_head_is_another_head_of_the_same_kind():
    """Every right artery of a phantom lies on the right of its left partner; so it must in the mirror image."""
    names = "background BA R-PCA L-PCA R-ICA R-MCA L-ICA L-MCA R-Pcom L-Pcom Acom R-ACA L-ACA 3rd-A2".split()
    label = torch.from_numpy(circle_of_willis(seed=1))[None]
    label[label == 15] = 13
    parts = ("PCA", "ICA", "MCA", "Pcom", "ACA")
    flip = RandFlipSidesd("label", "label", names, [[f"R-{part}", f"L-{part}"] for part in parts], prob=1.0)
    flipped = Compose([flip, TubedSkeletond("label")])({"label": label})

    def side(volume, index):
        return float((volume[0] == index).nonzero()[:, 0].float().mean())

    for right, left in (("R-ICA", "L-ICA"), ("R-PCA", "L-PCA"), ("R-MCA", "L-MCA"), ("R-ACA", "L-ACA")):
        index, partner = names.index(right), names.index(left)
        for volume in (label, flipped["label"]):
            assert side(volume, index) > side(volume, partner)
        # what was left is right now, voxel by voxel, and the tube of the mirror image knows it
        assert torch.equal(flipped["label"] == index, (label == partner).flip(1))
        assert (flipped["skeleton"] == index).any()


def test_labels_must_be_among_what_is_flipped():
    with pytest.raises(ValueError, match=r"label_keys must be among keys \['image'\], got \['label'\]"):
        RandFlipSidesd("image", "label", NAMES, PAIRS)


def test_channels_are_no_class_indices():
    flip = RandFlipSidesd("label", "label", NAMES, PAIRS, prob=1.0)
    with pytest.raises(ValueError, match=r"label must hold class indices in one channel, got shape \(4, 2, 2, 2\)"):
        flip({"label": torch.zeros(4, 2, 2, 2)})
