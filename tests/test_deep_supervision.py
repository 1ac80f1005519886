"""Pooled tubes stay whole and labels agree with them; the sum over heads is the formula, whatever the target's form."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.data import MetaTensor
from scipy import ndimage
from torch.nn.functional import interpolate

from monai_skelrec import DiceCESkeletonRecallLoss, SkeletonRecallLoss, TubeDeepSupervisionLoss, tubed_skeleton
from monai_skelrec.deep_supervision import pool_target

# --- the pooling, written out voxel by voxel -------------------------------------------------------------------------


def plain_pool(label, tube, size, num_classes, ignore_index=None):
    """Label and tube as defined, in loops over items, voxels and blocks; NumPy arrays in, float64 out."""
    n_items, full = len(tube), tube.shape[2:]
    regions = label.shape[1] == num_classes
    out = np.zeros((n_items, (num_classes if regions else 1) + num_classes, *size))
    for b in range(n_items):
        voxels_of = {}
        for v in np.ndindex(*full):
            block = tuple(x * m // n for x, m, n in zip(v, size, full))
            ignored = ignore_index is not None and any(label[(b, c, *v)] == ignore_index for c in range(label.shape[1]))
            for c in range(num_classes):
                here = tube[(b, c, *v)] == 1 if tube.shape[1] == num_classes else tube[(b, 0, *v)] == c > 0
                if here and not ignored:
                    out[(b, out.shape[1] - num_classes + c, *block)] = 1
                    voxels_of.setdefault(block, []).append(v)
        for block in np.ndindex(*size):
            voxels = voxels_of.get(block)
            if voxels is None:
                centre = tuple(int((x + 0.5) * n / m) for x, m, n in zip(block, size, full))
                out[(b, slice(None, -num_classes), *block)] = label[(b, slice(None), *centre)]
            elif regions:
                for c in range(num_classes):
                    out[(b, c, *block)] = any(label[(b, c, *v)] == 1 for v in voxels)
            else:
                votes = [sum(label[(b, 0, *v)] == c for v in voxels) for c in range(num_classes)]
                out[(b, 0, *block)] = votes.index(max(votes))
    return out


FORMS = ["indices", "indices and tubes that share voxels", "regions", "one region"]


def sample(form, shape, *, seed, n_items=2, dtype=torch.int64):
    """Number of classes, label and tube; index 9 in some voxels of the label is to be ignored."""
    torch.manual_seed(seed)
    num_classes = 1 if form == "one region" else 4
    if "region" in form:
        label = (torch.rand(n_items, num_classes, *shape) < 0.4).long()
        tube = label * (torch.rand(label.shape) < 0.3)
    else:
        label = torch.randint(0, num_classes, (n_items, 1, *shape))
        tube = label * (torch.rand(label.shape) < 0.3)
        if form != "indices":
            tube = (torch.rand(n_items, num_classes, *shape) < 0.1).long()
            tube[:, 0] = 0
    label[:, 0][torch.rand(n_items, *shape) < 0.1] = 9
    return num_classes, label.to(dtype), tube.to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize(
    "shape, size", [((12,), (3,)), ((8, 6), (4, 3)), ((9, 7), (4, 5)), ((6, 8, 4), (3, 2, 4)), ((5, 5, 5), (1, 2, 5))]
)
@pytest.mark.parametrize("form", FORMS)
def test_pooling_equals_its_definition(form, shape, size, dtype):
    num_classes, label, tube = sample(form, shape, seed=sum(shape), dtype=dtype)
    before = label.clone(), tube.clone()
    (pooled,) = pool_target(label, tube, [size], num_classes, ignore_index=9)
    assert pooled.dtype == dtype
    np.testing.assert_array_equal(pooled, plain_pool(label.numpy(), tube.numpy(), size, num_classes, 9))
    assert torch.equal(label, before[0]) and torch.equal(tube, before[1])


def test_ignored_voxels_pass_no_tube_on():
    label = torch.tensor([1, 9, 9, 9, 2, 2, 0, 9]).view(1, 1, 8)
    tube = torch.tensor([0, 1, 2, 2, 2, 0, 0, 0]).view(1, 1, 8)
    ignored = pool_target(label, tube, [(4,)], 3, ignore_index=9)[0]
    assert ignored[0, 0].tolist() == [9, 9, 2, 9]  # nearest is the second of two; the third block has a tube
    assert ignored[0, 1:].argmax(0).tolist() == [0, 0, 2, 0]
    kept = pool_target(label.where(label != 9, 0), tube, [(4,)], 3, ignore_index=9)[0]
    assert kept[0, 1:].argmax(0).tolist() == [1, 2, 2, 0]


def test_label_of_a_block_is_the_commonest_of_its_tube():
    # blocks of four: two of class 3 against one of class 1; a draw; no tube, nearest is the third voxel
    label = torch.tensor([3, 1, 3, 0, 2, 1, 1, 2, 0, 0, 3, 0]).view(1, 1, 12)
    tube = torch.tensor([3, 1, 3, 0, 2, 1, 1, 2, 0, 0, 0, 0]).view(1, 1, 12)
    pooled = pool_target(label, tube, [(3,)], 4)[0][0]
    assert pooled[0].tolist() == [3, 1, 3]
    assert pooled[1:].tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_without_a_tube_the_label_is_sampled_as_torch_does():
    label = torch.randint(0, 5, (1, 1, 12, 9, 10)).float()
    pooled = pool_target(label, torch.zeros_like(label), [(6, 9, 3)], 5)[0]
    assert torch.equal(pooled[:, :1], interpolate(label, (6, 9, 3), mode="nearest-exact"))


def test_a_tube_alone_is_pooled_without_label():
    tube = torch.tensor([0, 1, 2, 2, 0, 0]).view(1, 1, 6)
    assert pool_target(None, tube, [(3,)], 3)[0].tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]


# --- tubes stay whole ------------------------------------------------------------------------------------------------

STRIDES = {2: [(2, 2), (4, 4), (8, 8), (1, 2), (4, 2)], 3: [(2, 2, 2), (4, 4, 4), (8, 8, 8), (1, 2, 2), (2, 4, 8)]}


def random_tree(seed, dims):
    """Thin branches that wander from one another, each of a class of its own, and the tube of the whole."""
    rng = np.random.default_rng(seed)
    shape = np.array([64] * 2 if dims == 2 else [32] * 3)
    label = np.zeros(shape, np.uint8)
    known = [shape // 2]
    for branch in range(rng.integers(2, 6)):
        at, heading = np.array(known[rng.integers(len(known))], float), rng.normal(size=dims)
        for _ in range(60):
            heading += rng.normal(scale=0.4, size=dims)
            at += heading / np.linalg.norm(heading)
            place = np.rint(at).astype(int)
            if (place < 0).any() or (place >= shape).any():
                break
            label[tuple(place)] = branch + 1
            known.append(place)
    thick = ndimage.grey_dilation(label, footprint=ndimage.generate_binary_structure(dims, 1))
    label = label if rng.random() < 0.5 else thick
    return label, tubed_skeleton(label, radius=int(rng.integers(0, 3)))


def components(mask):
    return ndimage.label(mask, np.ones((3,) * mask.ndim))[1]


@pytest.mark.parametrize("dims, seed", product((2, 3), range(30)))
def test_no_tube_breaks_at_any_scale(dims, seed):
    label, tube = (torch.from_numpy(x.astype(np.int64))[None, None] for x in random_tree(seed, dims))
    sizes = [tuple(n // s for n, s in zip(tube.shape[2:], stride)) for stride in STRIDES[dims]]
    sizes.append(tuple(n * 2 // 3 for n in tube.shape[2:]))  # no whole number of voxels a block
    classes = tube.unique().tolist()[1:]
    before = {c: components(tube[0, 0] == c) for c in classes}
    for pooled in pool_target(label, tube, sizes, 6):
        coarse = pooled[0, 1:].numpy() > 0
        assert components(coarse.any(0)) <= components(tube[0, 0] > 0)
        for c in classes:
            assert 1 <= components(coarse[c]) <= before[c]
        # cross-entropy calls a tube's block by one of the tube's classes
        for block in np.argwhere(coarse.any(0)):
            assert coarse[(int(pooled[(0, 0, *block)]), *block)]


def test_sampling_and_index_maps_break_tubes_which_is_why_neither_is_used():
    torn_by_sampling = split_by_index_map = 0
    for seed in range(30):
        label, tube = (torch.from_numpy(x.astype(np.int64))[None, None] for x in random_tree(seed, 3))
        size = (16, 16, 16)
        sampled = interpolate(tube.float(), size, mode="nearest-exact")[0, 0]
        torn_by_sampling += components(sampled > 0) > components(tube[0, 0] > 0)
        index_map = pool_target(label, tube, [size], 6)[0][0, 1:].argmax(0)
        split_by_index_map += any(
            components(index_map == c) != components(tube[0, 0] == c) for c in tube.unique().tolist()[1:]
        )
    assert torn_by_sampling > 10 and split_by_index_map > 5


# --- the sum over heads ----------------------------------------------------------------------------------------------

LOSSES = {
    "indices": DiceCESkeletonRecallLoss(weight=[0.5, 1, 2, 1], ignore_index=9, lambda_skeleton=0.3),
    "indices and tubes that share voxels": DiceCESkeletonRecallLoss(batch=True, ignore_index=9, absent="count"),
    "regions": DiceCESkeletonRecallLoss(sigmoid=True, include_background=True, ignore_index=9),
    "one region": DiceCESkeletonRecallLoss(sigmoid=True, ignore_index=9, weight=[2.0]),
}


def heads_of(num_classes, sizes, n_items=2):
    return [torch.randn(n_items, num_classes, *size, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("shape, sizes", [((8, 6), [(4, 3), (2, 3)]), ((8, 4, 6), [(4, 4, 3), (2, 2, 2), (1, 2, 1)])])
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_are_the_weighted_sum_over_plainly_pooled_targets(form, shape, sizes):
    num_classes, label, tube = sample(form, shape, seed=1)
    heads = heads_of(num_classes, [shape, *sizes])
    value = TubeDeepSupervisionLoss(LOSSES[form])(heads, torch.cat([label, tube], 1))
    targets = [torch.cat([label, tube], 1)] + [
        torch.from_numpy(plain_pool(label.numpy(), tube.numpy(), size, num_classes, 9)) for size in sizes
    ]
    total = sum(0.5**i for i in range(len(heads)))
    expected = sum(0.5**i / total * LOSSES[form](head, target) for i, (head, target) in enumerate(zip(heads, targets)))
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=1e-12)
    for grad, grad_expected in zip(torch.autograd.grad(value, heads), torch.autograd.grad(expected, heads)):
        assert grad.any()
        torch.testing.assert_close(grad, grad_expected, atol=1e-12, rtol=1e-12)


def test_recall_alone_takes_the_tube_alone():
    num_classes, _, tube = sample("indices", (8, 6), seed=2)
    heads = heads_of(num_classes, [(8, 6), (4, 3)])
    value = TubeDeepSupervisionLoss(SkeletonRecallLoss(to_onehot_y=True, softmax=True))(heads, tube)
    coarse = pool_target(None, tube, [(4, 3)], num_classes)[0]
    expected = [
        SkeletonRecallLoss(softmax=True, to_onehot_y=True)(heads[0], tube),
        SkeletonRecallLoss(softmax=True)(heads[1], coarse),  # channel 0 is left out here too
    ]
    torch.testing.assert_close(value, (2 * expected[0] + expected[1]) / 3)


def test_at_full_resolution_pooling_changes_nothing():
    num_classes, label, tube = sample("indices", (8, 6), seed=3)
    (head,) = heads_of(num_classes, [(8, 6)])
    target = torch.cat([label, tube], 1)
    loss = LOSSES["indices"]
    torch.testing.assert_close(TubeDeepSupervisionLoss(loss)([head, head], target), loss(head, target))


def test_a_single_tensor_or_head_is_the_loss_itself():
    num_classes, label, tube = sample("indices", (8, 6), seed=4)
    (head,) = heads_of(num_classes, [(8, 6)])
    target, loss = torch.cat([label, tube], 1), LOSSES["indices"]
    expected = loss(head, target).item()
    assert TubeDeepSupervisionLoss(loss)(head, target).item() == expected
    assert TubeDeepSupervisionLoss(loss)([head], target).item() == expected
    assert TubeDeepSupervisionLoss(loss, weights=[1, 3])(head, MetaTensor(target)).item() == expected


def test_weights_are_normalised_and_can_be_given():
    num_classes, label, tube = sample("indices", (8, 8), seed=5)
    heads = heads_of(num_classes, [(8, 8), (4, 4), (2, 2), (1, 1)])
    target, loss = torch.cat([label, tube], 1), LOSSES["indices"]
    each = [loss(heads[0], target), *map(loss, heads[1:], pool_target(label, tube, [(4, 4), (2, 2), (1, 1)], 4, 9))]
    halved = sum(w * value for w, value in zip((8 / 15, 4 / 15, 2 / 15, 1 / 15), each))
    torch.testing.assert_close(TubeDeepSupervisionLoss(loss)(heads, target), halved)
    given = (each[0] + 3 * each[2]) / 4
    torch.testing.assert_close(TubeDeepSupervisionLoss(loss, weights=[2, 0, 6, 0])(tuple(heads), target), given)


def test_terms_are_those_of_full_resolution():
    num_classes, label, tube = sample("indices", (8, 6), seed=6)
    heads = heads_of(num_classes, [(8, 6), (4, 3)])
    target, loss = torch.cat([label, tube], 1), copy.deepcopy(LOSSES["indices"])
    supervised = TubeDeepSupervisionLoss(loss)
    assert supervised.terms == {}
    supervised(heads, target)
    loss(heads[0], target)
    assert supervised.terms == loss.terms and len(loss.terms) == 3
    assert not any(term.requires_grad for term in supervised.terms.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_heads(dtype):
    num_classes, label, tube = sample("indices", (8, 6), seed=7)
    heads = [head.detach().to(dtype).requires_grad_() for head in heads_of(num_classes, [(8, 6), (4, 3)])]
    supervised = TubeDeepSupervisionLoss(LOSSES["indices"])
    value = supervised(heads, MetaTensor(torch.cat([label, tube], 1).float()))
    value.backward()
    exact = supervised([head.detach().double() for head in heads], torch.cat([label, tube], 1))
    assert type(value) is torch.Tensor and value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, atol=1e-5, rtol=1e-5)
    assert all(head.grad.dtype == dtype and head.grad.any() for head in heads)


HEAD = torch.zeros(1, 3, 4, 4)
TARGET = torch.zeros(1, 2, 4, 4)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: TubeDeepSupervisionLoss(LOSSES["indices"], weights=[1, -1]), r"of at least 0.*got \[1, -1\]"),
        (lambda: TubeDeepSupervisionLoss(LOSSES["indices"], weights=[0, 0]), "one of them positive"),
        (lambda: TubeDeepSupervisionLoss(LOSSES["indices"], weights=[]), "one of them positive"),
        (lambda: TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss())([], TARGET), "expected at least one heads, got 0"),
        (
            lambda: TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss(), weights=[1, 1])([HEAD], TARGET),
            "expected 2 heads, got 1",
        ),
        (
            lambda: TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss())([HEAD, torch.zeros(1, 3, 4, 5)], TARGET),
            r"no larger than the target, of size \(4, 4\), .* got one of size \(4, 5\)",
        ),
        (
            lambda: TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss())([HEAD[..., :2], HEAD], TARGET),
            r"target must have shape \(1, 2, 4, 2\)",
        ),
        (
            lambda: TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss())([HEAD, HEAD], TARGET + 3),
            "label must hold whole class indices from 0 to 2",
        ),
        (
            lambda: pool_target(TARGET[:, :1], TARGET[:, 1:] + 3, [(2, 2)], 3),
            "tube must hold classes from 0 to 2.*got 3",
        ),
        (lambda: pool_target(TARGET[:, :1] - 1, TARGET[:, 1:] + 2, [(2, 2)], 3), "label must hold classes .*got -1"),
    ],
)
def test_what_does_not_fit_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- two processes ---------------------------------------------------------------------------------------------------


class TwoHeads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fine, self.coarse = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(1, 4, 2, stride=2)

    def forward(self, x):
        return [self.fine(x), self.coarse(x)]


def step(model, rank, world):
    num_classes, label, tube = sample("indices", (8, 6), seed=8, n_items=2)
    image = torch.randn(2, 1, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.cat([label, tube], 1)
    loss = TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss(batch=True, ignore_index=9))
    value = loss(model(image[rank::world]), target[rank::world])
    value.backward()
    return value.detach(), [p.grad.clone() for p in model.parameters()]


def train_one_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(TwoHeads().double())
    torch.save(step(model, rank, 2), f"{folder}/{rank}.pt")


def test_two_processes_give_the_value_and_gradient_of_the_whole_batch(tmp_path):
    other = mp.spawn(_other_rank, args=(str(tmp_path),), join=False)
    try:
        train_one_rank(0, str(tmp_path))
    finally:
        dist.destroy_process_group()
    other.join()
    torch.manual_seed(0)
    value, gradients = step(TwoHeads().double(), 0, 1)
    for rank in (0, 1):
        value_there, gradients_there = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(value_there, value, atol=1e-12, rtol=1e-12)
        for there, here in zip(gradients_there, gradients):
            torch.testing.assert_close(there, here, atol=1e-12, rtol=1e-12)


def _other_rank(process, folder):
    train_one_rank(1, folder)
