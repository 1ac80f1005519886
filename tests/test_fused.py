"""The closed form against the formula written out on one-hot tensors and left to autograd, over every option."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.data import MetaTensor
from plain_loss import plain_loss
from torch.nn.parallel import DistributedDataParallel

from monai_skelrec import chunks
from monai_skelrec.losses import DiceCESkeletonRecallLoss

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def sample(n_items, n_classes, shape, *, multi_hot, seed, device="cpu"):
    """Logits, and a target with absent classes and one item without any tube; ``multi_hot`` may be True, False or
    "tube", for class indices beside tubes that share voxels."""
    torch.manual_seed(seed)
    x = torch.randn(n_items, n_classes, *shape, dtype=torch.float64)
    if multi_hot is True:
        label = (torch.rand(n_items, n_classes, *shape) < 0.4).long()
        label[0, 0] = 0
        tube = label * (torch.rand(label.shape) < 0.4)
    else:
        label = torch.randint(0, n_classes, (n_items, 1, *shape))
        label[0][label[0] == n_classes - 1] = 0
        tube = label * (torch.rand(label.shape) < 0.4)
    if multi_hot == "tube":
        tube = (torch.rand(n_items, n_classes, *shape) < 0.3).long()
        tube[0, -1] = 0
    tube[-1] = 0
    return x.to(device).requires_grad_(), torch.cat([label, tube], 1).to(device)


def value_and_gradient(loss, x):
    value = loss(x)
    return value.detach(), torch.autograd.grad(value, x)[0]


def assert_equal_to_plain(x, target, tolerance=1e-9, **options):
    value, grad = value_and_gradient(lambda x: DiceCESkeletonRecallLoss(**options)(x, target), x)
    expected, expected_grad = value_and_gradient(lambda x: plain_loss(x, target, **options), x)
    torch.testing.assert_close(value.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(grad.double(), expected_grad.double(), atol=tolerance, rtol=tolerance)
    return grad


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of a few voxels, that divide no volume here, on two threads."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * 18 * 7)
    monkeypatch.setattr(chunks, "SERIAL_SIZE", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


FORMS = [
    pytest.param({"sigmoid": False}, False, id="softmax"),
    pytest.param({"sigmoid": True}, False, id="sigmoid of class indices"),
    pytest.param({"sigmoid": False}, "tube", id="softmax, tubes that share voxels"),
    pytest.param({"sigmoid": True, "include_background": True}, True, id="overlapping regions"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form, multi_hot", FORMS)
def test_every_combination_of_options_equals_the_plain_formula(form, multi_hot, device, small_chunks):
    x, target = sample(3, 4, (3, 5), multi_hot=multi_hot, seed=0, device=device)
    ignored = target.clone()
    ignored[:, 0, 1:, 2:4] = 9
    weight = torch.tensor([0.0, 1, 2, 0.5])
    background = [True] if multi_hot is True else [False, True]
    for back, reduction, batch, w, absent, ignore in itertools.product(
        background, ("mean", "sum"), (False, True), (None, weight), ("skip", "count"), (None, 9)
    ):
        options = {"include_background": back, "reduction": reduction, "batch": batch, "weight": w, "absent": absent}
        options = {**form, **options, "ignore_index": ignore, "smooth_nr": 0.1, "smooth_dr": 0.3, "lambda_ce": 0.7}
        assert_equal_to_plain(x, target if ignore is None else ignored, **options)


@pytest.mark.parametrize("seed", range(40))
def test_any_shape_and_number_of_classes_equals_the_plain_formula(seed, small_chunks):
    choose = random.Random(seed).choice
    multi_hot = choose([False, "tube", True])
    regions = multi_hot is True
    n_classes = choose([1, 2, 3, 14, 118] if regions else [2, 3, 14, 118])
    shape = choose([(11,), (1, 1), (5, 7), (1, 9), (3, 4, 5), (2, 1, 6)])
    x, target = sample(choose([1, 2, 3]), n_classes, shape, multi_hot=multi_hot, seed=seed)
    grad = assert_equal_to_plain(
        x,
        target.to(choose([torch.uint8, torch.int16, torch.int64, torch.float32])),
        sigmoid=regions or choose([False, True]),
        include_background=regions or choose([False, True]),
        lambda_dice=choose([0, 1, 0.3]),
        lambda_ce=choose([0, 1, 2.0]),
        lambda_skeleton=choose([0, 1, 0.1]),
        batch=choose([False, True]),
        absent=choose(["skip", "count"]),
        weight=choose([None, torch.rand(n_classes)]),
    )
    assert grad.shape == x.shape


def test_one_channel_equals_the_plain_formula():
    x, target = sample(2, 1, (4, 5), multi_hot=True, seed=1)
    for options in ({}, {"weight": torch.tensor([3.0])}, {"include_background": True, "ignore_index": 7}):
        assert_equal_to_plain(x, target, sigmoid=True, **options)


@pytest.mark.parametrize("form, multi_hot", FORMS)
def test_gradcheck(form, multi_hot, small_chunks):
    x, target = sample(2, 3, (3, 4), multi_hot=multi_hot, seed=2)
    loss = DiceCESkeletonRecallLoss(weight=[1.0, 2.0, 0.5], **form)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), x)


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "axes permuted": lambda x: x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "one head of a stack": lambda x: torch.stack([x, x], 1)[:, 1],
    "cropped": lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1, 1, 1))[..., 1:-1, 1:-1, 1:-1],
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:, :, :1, :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form, multi_hot", FORMS)
def test_any_memory_layout_equals_the_plain_formula(layout, form, multi_hot, small_chunks):
    x, target = sample(2, 3, (4, 5, 6), multi_hot=multi_hot, seed=3)
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    grad = assert_equal_to_plain(x, target, **form)
    if layout in ("channels last", "axes permuted", "batch last"):
        assert grad.stride() == x.stride()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_the_target_may_lie_in_memory_otherwise_than_the_logits(memory_format):
    x, target = sample(2, 3, (4, 5, 6), multi_hot=False, seed=4)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    assert_equal_to_plain(x, target.transpose(2, 4).contiguous().transpose(2, 4))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form, multi_hot", FORMS)
def test_lower_precision_is_computed_in_float32(form, multi_hot, dtype, device, small_chunks):
    x, target = sample(2, 3, (9, 9), multi_hot=multi_hot, seed=5, device=device)
    x = x.detach().to(dtype).requires_grad_()
    loss = DiceCESkeletonRecallLoss(**form)
    value, grad = value_and_gradient(lambda x: loss(x, target), x)
    expected, expected_grad = value_and_gradient(
        lambda x: plain_loss(x, target, **form), x.detach().double().requires_grad_()
    )
    assert (value.dtype, grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grad, expected_grad.to(dtype), atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


def test_a_scaled_half_precision_loss_keeps_gradients_that_would_vanish_unscaled():
    x = torch.zeros(1, 2, 512, 512, dtype=torch.float16, requires_grad=True)
    loss = DiceCESkeletonRecallLoss(lambda_dice=0, lambda_skeleton=0)
    target = torch.zeros(1, 2, 512, 512)
    loss(x, target).mul(2**16).backward()
    # half of a voxel's share of the mean, times the scale: 2**-1 * 2**-18 * 2**16
    assert x.grad.unique().tolist() == [-0.125, 0.125]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form, multi_hot", FORMS)
@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(lambda x: torch.zeros_like(x), id="all equal"),
        pytest.param(lambda x: torch.full_like(x, 1e4), id="all large"),
        pytest.param(lambda x: 1e4 * x.sign(), id="plus and minus 1e4"),
    ],
)
def test_extreme_logits_stay_finite(logits, form, multi_hot, dtype):
    x, target = sample(2, 3, (6, 7), multi_hot=multi_hot, seed=6)
    x = logits(x.detach()).to(dtype).requires_grad_()
    value, grad = value_and_gradient(lambda x: DiceCESkeletonRecallLoss(**form)(x, target), x)
    expected = plain_loss(x.detach(), target, **form)
    assert grad.isfinite().all()
    torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form, multi_hot", FORMS)
def test_one_class_filling_the_volume(form, multi_hot):
    x, target = sample(2, 3, (6, 7), multi_hot=multi_hot, seed=7)
    assert_equal_to_plain(x, torch.ones_like(target), **form)


@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "batch": True, "weight": [0.5, 1, 2]}])
@pytest.mark.parametrize("form, multi_hot", FORMS)
def test_the_terms_are_those_of_the_plain_formula_whatever_their_weights(form, multi_hot, options, small_chunks):
    x, target = sample(2, 3, (6, 7), multi_hot=multi_hot, seed=14)
    lambdas = {"lambda_dice": 0.3, "lambda_ce": 0.0, "lambda_skeleton": 2.0}
    loss = DiceCESkeletonRecallLoss(**lambdas, **options, **form)
    assert loss.terms == {}
    value = loss(x, target)
    weights = torch.tensor(options.get("weight", [1, 1, 1]))
    for name, key in (("dice", "lambda_dice"), ("ce", "lambda_ce"), ("skeleton_recall", "lambda_skeleton")):
        only = {**dict.fromkeys(lambdas, 0.0), key: 1.0}
        expected = plain_loss(x, target, **only, **{**options, "weight": weights}, **form)
        assert loss.terms[name].shape == () and not loss.terms[name].requires_grad
        torch.testing.assert_close(loss.terms[name], expected.detach(), atol=1e-9, rtol=1e-9)
    total = sum(lambdas[key] * term for key, term in zip(lambdas, loss.terms.values()))
    torch.testing.assert_close(total, value.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("form, multi_hot", FORMS)
@pytest.mark.parametrize("smooth", [1e-5, 0.0])
def test_a_sample_of_ignored_voxels_only_costs_nothing_and_keeps_the_graph(form, multi_hot, smooth):
    x, target = sample(2, 3, (6, 7), multi_hot=multi_hot, seed=8)
    target[:, : 1 if multi_hot == "tube" else target.shape[1] // 2] = 5
    loss = DiceCESkeletonRecallLoss(ignore_index=5, smooth_nr=smooth, smooth_dr=smooth, **form)
    value, grad = value_and_gradient(lambda x: loss(x, target), x)
    assert value == 0
    assert not grad.any()


def test_counts_beyond_what_float32_can_count():
    # 2**24 + 2 voxels: a float32 counter stops at 2**24; the answer to uniform logits is known
    n = 2**24 + 2
    x = torch.zeros(1, 2, n, dtype=torch.float16)
    target = torch.ones(1, 1, n, dtype=torch.uint8).expand(1, 2, n)
    loss = DiceCESkeletonRecallLoss(lambda_ce=0, smooth_nr=0, smooth_dr=0, reduction="sum")
    # Dice: 2 * n/2 / (n/2 + n), recall: 1/2
    assert loss(x, target).item() == pytest.approx((1 - 2 / 3) + 1 / 2, abs=1e-7)


def test_the_graph_can_be_used_again_but_not_differentiated_twice():
    x, target = sample(2, 3, (4, 5), multi_hot=False, seed=9)
    value = DiceCESkeletonRecallLoss()(x, target)
    once = torch.autograd.grad(value, x, retain_graph=True)[0]
    twice = torch.autograd.grad(3 * value, x, retain_graph=True)[0]
    torch.testing.assert_close(twice, 3 * once)
    (again,) = torch.autograd.grad(value, x, create_graph=True)
    assert torch.equal(again, once)
    with pytest.raises(RuntimeError, match="can be differentiated once, not twice"):
        again.sum().backward()


def test_without_gradient_the_value_is_the_same():
    x, target = sample(2, 3, (4, 5), multi_hot=False, seed=10)
    loss = DiceCESkeletonRecallLoss()
    with torch.no_grad():
        assert loss(x, target) == loss(x.detach(), target)
    assert not loss(x.detach(), target).requires_grad
    assert loss(x, target).item() == loss(x.detach(), target).item()


def test_arguments_are_left_as_they_are(small_chunks):
    x, target = sample(2, 3, (4, 5), multi_hot=False, seed=11)
    before = x.detach().clone(), target.clone()
    threads = torch.get_num_threads()
    DiceCESkeletonRecallLoss()(x, MetaTensor(target)).backward()
    assert torch.equal(x.detach(), before[0]) and torch.equal(target, before[1])
    assert torch.get_num_threads() == threads


def test_an_error_in_a_chunk_reaches_the_caller(small_chunks):
    x, target = sample(2, 3, (4, 5), multi_hot=False, seed=12)
    target[1, 0, -1, -1] = 3
    with pytest.raises(ValueError, match="label must hold whole class indices from 0 to 2"):
        DiceCESkeletonRecallLoss()(x, target)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_memory_is_one_gradient_and_little_more():
    x = torch.randn(2, 14, 160, 192, 80, device="cuda", requires_grad=True)
    target = torch.randint(0, 14, (2, 2, 160, 192, 80), device="cuda", dtype=torch.uint8)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    DiceCESkeletonRecallLoss()(x, target).backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= x.numel() * x.element_size() + 2**25


N_PROCESSES = 2  # this one and another
GLOBAL_OPTIONS = [
    {"batch": True},
    {"batch": True, "weight": [1.0, 2.0, 0.5], "absent": "count", "ignore_index": 7},
    {"batch": True, "sigmoid": True, "reduction": "sum"},
]


def global_batch():
    x, target = sample(2 * N_PROCESSES, 3, (4, 5), multi_hot=False, seed=13)
    target[0, 0, 0, :3] = 7  # ranks ignore different numbers of voxels
    return x.detach(), target


def options_and_target(options, target):
    return options, target if options.get("ignore_index") else target.remainder(7)


def train_one_rank(process, rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=N_PROCESSES)
    x, target = global_batch()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Conv2d(3, 3, 1).double())
    results = []
    for options in GLOBAL_OPTIONS:
        options, labels = options_and_target(options, target)
        loss = DiceCESkeletonRecallLoss(**options)
        model.zero_grad()
        value = loss(model(x[rank::N_PROCESSES]), labels[rank::N_PROCESSES])
        value.backward()
        with torch.no_grad():  # no rank may wait here for another: only one takes part
            alone = loss(x[:1], labels[:1]) if rank == 0 else None
        results.append((value.detach(), [p.grad.clone() for p in model.parameters()], alone))
    torch.save(results, f"{folder}/{rank}.pt")


def test_two_processes_give_the_value_and_gradient_of_the_whole_batch(tmp_path):
    other = mp.spawn(train_one_rank, args=(1, str(tmp_path)), join=False)
    try:
        train_one_rank(0, 0, str(tmp_path))
    finally:
        dist.destroy_process_group()
    other.join()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(N_PROCESSES)]
    x, target = global_batch()
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 3, 1).double()
    for options, *results in zip(GLOBAL_OPTIONS, *ranks):
        options, labels = options_and_target(options, target)
        loss = DiceCESkeletonRecallLoss(**options)
        model.zero_grad()
        whole = loss(model(x), labels)
        whole.backward()
        for value, gradients, alone in results:
            torch.testing.assert_close(value, whole.detach(), atol=1e-12, rtol=1e-12)
            for gradient, parameter in zip(gradients, model.parameters()):
                torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=1e-12)
            assert alone is None or alone == loss(x[:1], labels[:1])
