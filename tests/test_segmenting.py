"""A scan's label map in bounded memory is the one of MONAI's own steps: Spacing, sliding window, Invert, argmax."""

from __future__ import annotations

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import DynUNet
from monai.transforms import Compose, Invertd, NormalizeIntensityd, Orientationd, Spacingd
from scan_data import affine_of, oblique

from monai_skelrec import segmenting
from monai_skelrec.axis_maps import map_grids
from monai_skelrec.inferers import autocast_on_cpu
from monai_skelrec.memory_plans import Plan, plan_memory
from monai_skelrec.reading import Loaded
from monai_skelrec.segmenting import Segmenter
from monai_skelrec.streaming import Windows

INTENSITY = NormalizeIntensityd("image")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(6, 4, 3, padding=1)
    ).requires_grad_(False)


def scan_of(shape, affine):
    torch.manual_seed(1)
    return Loaded(torch.rand(1, *shape), affine, [])


def step_by_step(scan, net, spacing, window=8):
    """What inference.json does; class indices and probabilities."""
    steps = [Orientationd("image", axcodes="RAS", labels=None)]
    steps += [Spacingd("image", pixdim=spacing, mode="bilinear")] if spacing else []
    before = Compose([*steps, INTENSITY])
    data = before({"image": MetaTensor(scan.image.clone(), torch.tensor(scan.affine))})
    data["pred"] = SlidingWindowInferer((window,) * 3, 2, 0.5, mode="gaussian")(data["image"][None], net)[0]
    data = Invertd("pred", before, orig_keys="image", nearest_interp=False)(data)
    logits = data["pred"].as_tensor().float()
    return logits.argmax(0).numpy(), torch.softmax(logits, 0).numpy()


def segmenter(net, spacing, **options):
    return Segmenter(net, Windows((8, 8, 8), batch_size=2), 4, spacing=spacing, intensity=INTENSITY, **options)


@pytest.mark.parametrize(
    "affine",
    [affine_of(), affine_of((-0.5, 0.75, -1.25)), affine_of(rotation=oblique()), affine_of()[[1, 2, 0, 3]]],
    ids=["straight", "flipped", "oblique", "permuted"],
)
@pytest.mark.parametrize("spacing", [None, (0.4, 0.4, 0.65), (0.9, 0.9, 0.9)], ids=["own", "finer", "coarser"])
def test_label_map_and_probabilities_are_those_of_monais_steps(affine, spacing):
    scan, net, shape = scan_of((15, 19, 11), affine), network(), (15, 19, 11)
    labels, shares = step_by_step(scan, net, spacing)
    ours = segmenter(net, spacing)(lambda: scan, lambda size: np.empty(size, np.float16))
    assert ours.labels.shape == shape and ours.labels.dtype == np.uint8
    # two classes within rounding of each other may change places
    assert (ours.labels != labels).mean() < 1e-3
    np.testing.assert_allclose(ours.probabilities, shares, atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("tiles", [1, 3, 7])
def test_neither_axis_nor_tiles_change_the_label_map(axis, tiles, monkeypatch):
    scan, net = scan_of((15, 19, 11), affine_of((-0.5, 0.75, 1.25))), network()
    whole = segmenter(net, (0.6, 0.6, 0.9))(lambda: scan).labels
    monkeypatch.setattr(segmenting, "plan_memory", lambda *_, **__: Plan(axis, (axis + 1) % 3, tiles, 0.1))
    part = segmenter(net, (0.6, 0.6, 0.9))(lambda: scan).labels
    assert (whole != part).mean() < 1e-3


def unet():
    torch.manual_seed(0)
    strides, kernels, filters = [1, 2, 2], [3, 3, 3], [4, 6, 8]
    net = DynUNet(3, 1, 4, kernels, strides, strides[1:], filters, norm_name=("INSTANCE", {"affine": True}))
    return net.requires_grad_(False).eval()


@pytest.mark.parametrize("amp, same", [(False, 1e-4), (True, 1e-3)], ids=["single", "mixed"])
def test_real_network_gives_the_same_classes_whole_in_tiles_and_by_monais_steps(amp, same):
    """With instance normalisation, whose output depends on the whole window."""
    scan, net, spacing = scan_of((40, 38, 30), affine_of((-0.5, 0.75, 1.25))), unet(), (0.6, 0.6, 0.9)
    windows = Windows((16, 16, 16), amp=amp)
    whole, tiled = (
        Segmenter(net, windows, 4, spacing=spacing, intensity=INTENSITY, max_memory_gb=gb)(lambda: scan)
        for gb in (None, 0.0008)
    )
    assert whole.plan.tiles == 1 and tiled.plan.tiles >= 3 and len(np.unique(whole.labels)) == 4
    stock, _ = step_by_step(scan, autocast_on_cpu(net) if amp else net, spacing, 16)
    assert (whole.labels != tiled.labels).mean() < same and (whole.labels != stock).mean() < same


def test_bound_on_memory_is_kept_or_the_scan_refused():
    scan, net = scan_of((40, 40, 40), affine_of((1, 1, 1))), network()
    free = segmenter(net, None)(lambda: scan)
    assert free.plan.tiles == 1
    with pytest.raises(ValueError, match="needs at least 0.00.* GB for 4 classes; max_memory_gb is 0.0005"):
        segmenter(net, None, max_memory_gb=0.0005)(lambda: scan)


def test_tighter_bounds_need_more_tiles_up_to_a_limit():
    shape, window = (1024, 1024, 800), (192, 160, 80)
    plans = [plan_memory(shape, shape, window, classes=60, max_memory_gb=gb) for gb in (None, 20, 14, 11)]
    assert [plan.axis for plan in plans] == [2] * 4  # 80 slices of 1024 x 1024 are the smallest buffer
    tiles, memory = [plan.tiles for plan in plans], [plan.memory_gb for plan in plans]
    assert tiles == sorted(tiles) and memory == sorted(memory, reverse=True)
    assert all(plan.memory_gb <= gb for plan, gb in zip(plans[1:], (20, 14, 11)))
    assert tiles[0] == 1 and len(set(tiles)) == 4
    # 60 classes and the weights, 80 slices: what the ring alone takes
    assert memory[0] > 61 * 80 * 1024 * 1024 * 4 / 1e9


def test_plan_counts_what_is_held():
    """Windows of 10 slices along the first axis of a scan of 20 x 10 x 10, four classes; by hand."""
    whole = (20, 10, 10)
    scan, ring, last = 4 * 2000, 4 * (4 + 1) * 10 * 100, 4 * 4 * 100
    work = 4 * 5 * 100 * 11  # five arrays of one class, of the ten slices that are ready and one more
    filling = scan + ring + last + work + 2000  # and a byte a voxel of labels
    assert plan_memory(whole, whole, (10, 10, 10), classes=4).memory_gb == pytest.approx(filling / 1e9, rel=0.01)
    shares = 2.5 * 4 * 4 * 100 * 11
    plan = plan_memory(whole, whole, (10, 10, 10), classes=4, probabilities=True)
    assert plan.memory_gb == pytest.approx((filling + shares) / 1e9, rel=0.01)
    # four times as fine along each axis: before and after the last one, while a window of two slices takes little
    finer = plan_memory(whole, (80, 40, 40), (2, 2, 2), classes=2, channels=5)
    assert finer.memory_gb == pytest.approx(3 * 4 * 5 * 80 * 40 * 40 / 1e9, rel=0.01)
    coarser = plan_memory(whole, (20, 10, 3), (2, 2, 2), classes=2, channels=50)
    assert coarser.memory_gb == pytest.approx(2 * 4 * 50 * 2000 / 1e9, rel=0.01)


def test_largest_class_is_that_of_argmax_and_the_first_of_equals():
    logits = torch.randint(0, 3, (300, 4, 5)).float()
    for classes in (7, 300):
        expected = logits[:classes].argmax(0)
        assert torch.equal(segmenting._largest(iter(logits[:classes]), classes).long(), expected)


def test_mirroring_changes_the_label_map_of_a_network_that_is_not_symmetric():
    scan, net = scan_of((12, 12, 12), affine_of()), network()
    plain, flipped = (segmenter(net, None, mirror_axes=axes)(lambda: scan).labels for axes in ((), (0, 1)))
    assert (plain != flipped).any()
    pairs = {1: 2, 2: 1}
    sided = segmenter(net, None, mirror_axes=(0,), pairs=pairs)(lambda: scan).labels
    assert (sided != segmenter(net, None, mirror_axes=(0,))(lambda: scan).labels).any()
    # of a scan that is its own mirror image, a left class is found where a right one is
    image = scan.image + scan.image.flip(1)
    same = segmenter(net, None, mirror_axes=(0,), pairs=pairs)(lambda: Loaded(image, scan.affine, [])).labels
    assert np.array_equal(np.array([0, 2, 1, 3])[same[::-1]], same) and {1, 2} & set(np.unique(same))


def test_more_than_256_classes_need_two_bytes():
    many = torch.nn.Conv3d(1, 300, 1).requires_grad_(False)
    many.weight.zero_()
    many.bias.copy_(torch.arange(300.0))
    scan = scan_of((8, 8, 8), affine_of())
    labels = Segmenter(many, Windows((8, 8, 8)), 300)(lambda: scan).labels
    assert labels.dtype == np.uint16 and (labels == 299).all()


def test_grid_of_the_network_has_the_shape_that_monai_gives_it():
    rng = np.random.default_rng(0)
    for _ in range(30):
        shape = tuple(int(size) for size in rng.integers(5, 40, 3))
        spacing, wanted = rng.choice([0.3, 0.35, 0.5, 0.7, 0.8, 1.2], (2, 3))
        affine = affine_of(spacing)[rng.permutation(3).tolist() + [3]]
        steps = Compose([Orientationd("i", axcodes="RAS", labels=None), Spacingd("i", pixdim=wanted)])
        there = steps({"i": MetaTensor(torch.rand(1, *shape), torch.tensor(affine))})["i"]
        assert map_grids(shape, affine, wanted).shape == tuple(there.shape[1:])


def test_sheared_scan_is_segmented_along_its_own_axes_and_says_so():
    affine = affine_of()
    affine[1, 2] = 0.4
    result = segmenter(network(), (0.6, 0.6, 0.9))(lambda: scan_of((15, 19, 11), affine))
    assert result.labels.shape == (15, 19, 11) and "not at right angles" in result.warnings[0]


def test_every_axis_order_and_direction_gives_one_label_map_in_space():
    """All 48 ways to store a scan, on a grid of another spacing: what a place in the body is does not depend on it."""
    scan, net = scan_of((13, 11, 9), affine_of()), network()
    image = nibabel.Nifti1Image(scan.image[0].numpy(), scan.affine)
    straight = segmenter(net, (0.6, 0.6, 0.9))(lambda: scan).labels
    names = [("L", "R"), ("P", "A"), ("I", "S")]
    for order in permutations(range(3)):
        for codes in product(*(names[axis] for axis in order)):
            turned = image.as_reoriented(
                nibabel.orientations.ornt_transform(
                    nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)
                )
            )
            stored = Loaded(torch.tensor(np.ascontiguousarray(turned.dataobj))[None], turned.affine, [])
            labels = segmenter(net, (0.6, 0.6, 0.9))(lambda stored=stored: stored).labels
            back = nibabel.as_closest_canonical(nibabel.Nifti1Image(labels, turned.affine))
            assert (np.asarray(back.dataobj) != straight).mean() < 2e-3, codes


@pytest.mark.parametrize("channel", [0, 3])
def test_nan_of_a_network_is_no_label_map(channel):
    class Broken(torch.nn.Module):
        def forward(self, windows):
            logits = torch.zeros(len(windows), 4, *windows.shape[2:])
            logits[:, channel, 4, 4, 4] = torch.nan
            return logits

    with pytest.raises(ValueError, match="the network gave NaN instead of numbers.*try amp False"):
        segmenter(Broken(), None)(lambda: scan_of((12, 11, 10), affine_of()))
