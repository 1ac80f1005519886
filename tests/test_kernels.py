"""The GPU's kernels against the same closed form on PyTorch's; without a GPU, Triton's interpreter runs them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()  # else conftest.py asks for Triton's interpreter

from monai_skelrec import fused, kernels  # noqa: E402
from monai_skelrec.losses import DiceCESkeletonRecallLoss  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"


@pytest.fixture(autouse=True)
def kernels_that_leave_a_trace(monkeypatch):
    """Kernels serve on this machine's device; which of them ran is in the list."""
    monkeypatch.setattr(fused, "KERNEL_DEVICES", (DEVICE,))
    ran = []
    for name in ("class_sums", "write_gradient"):
        original = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, original=original, name=name: (ran.append(name), original(*a))[1])
    fused._built_kernels.cache_clear()
    fused._built_kernels(torch.device(DEVICE))  # the probe
    ran.clear()
    return ran


def sample(n_items, n_classes, shape, *, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    x = torch.randn(n_items, n_classes, *shape).to(dtype)
    label = torch.randint(0, n_classes, (n_items, 1, *shape))
    label[0][label[0] == n_classes - 1] = 0
    tube = label * (torch.rand(label.shape) < 0.4)
    tube[-1] = 0
    return x.to(DEVICE), torch.cat([label, tube], 1).to(DEVICE)


def value_and_gradient(x, target, kernel_devices, scale=1.0, **options):
    fused.KERNEL_DEVICES = kernel_devices  # the fixture puts it back
    x = x.detach().requires_grad_()
    value = DiceCESkeletonRecallLoss(**options)(x, target)
    (scale * value).backward()
    return value.detach(), x.grad


def assert_equal(x, target, ran, tolerance=1e-12, **options):
    value, grad = value_and_gradient(x, target, (DEVICE,), **options)
    assert ran == ["class_sums", "write_gradient"]
    expected, expected_grad = value_and_gradient(x, target, (), **options)
    assert ran == ["class_sums", "write_gradient"]
    torch.testing.assert_close(value, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(grad, expected_grad, atol=tolerance, rtol=tolerance)
    assert grad.stride() == expected_grad.stride()
    ran.clear()


def test_every_option_gives_the_same_value_and_gradient(kernels_that_leave_a_trace):
    x, target = sample(2, 4, (3, 5))
    ignored = target.clone()
    ignored[:, 0, 1:, 2:4] = 9
    weight = torch.tensor([0.0, 1, 2, 0.5])
    for back, reduction, batch, w, absent, ignore in itertools.product(
        (False, True), ("mean", "sum"), (False, True), (None, weight), ("skip", "count"), (None, 9)
    ):
        options = {"include_background": back, "reduction": reduction, "batch": batch, "weight": w, "absent": absent}
        chosen = target if ignore is None else ignored
        assert_equal(x, chosen, kernels_that_leave_a_trace, ignore_index=ignore, lambda_ce=0.7, scale=3.0, **options)


@pytest.mark.parametrize(
    "n_classes, shape", [(2, (1, 1)), (2, (4100,)), (3, (5, 3, 7)), (14, (300,)), (118, (5, 7)), (256, (3, 3))]
)
def test_any_number_of_classes_and_voxels(n_classes, shape, kernels_that_leave_a_trace):
    assert_equal(*sample(2, n_classes, shape), kernels_that_leave_a_trace)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32, torch.float16])
def test_targets_of_any_dtype(dtype, kernels_that_leave_a_trace):
    x, target = sample(2, 3, (4, 5))
    assert_equal(x, target.to(dtype), kernels_that_leave_a_trace)
    x, target = sample(2, 2, (4, 5))
    assert_equal(x, target.bool(), kernels_that_leave_a_trace)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last_3d),
        lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1, 1, 1))[..., 1:-1, 1:-1, 1:-1],
        lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    ],
    ids=["channels last", "cropped", "batch last"],
)
def test_any_memory_layout(layout, kernels_that_leave_a_trace):
    x, target = sample(2, 3, (4, 5, 6))
    assert_equal(layout(x), target, kernels_that_leave_a_trace)
    assert_equal(x, target.transpose(2, 4).contiguous().transpose(2, 4), kernels_that_leave_a_trace)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, tolerance, kernels_that_leave_a_trace):
    x, target = sample(2, 5, (9, 9), dtype=dtype)
    assert_equal(x, target, kernels_that_leave_a_trace, tolerance=tolerance)
    assert_equal((1e4 * x.sign()).to(dtype), target, kernels_that_leave_a_trace, tolerance=tolerance)


@pytest.mark.parametrize("what, channel", [("label", 0), ("tubed skeleton", 1)])
@pytest.mark.parametrize("value", [3, -1, 0.5])
def test_a_value_that_is_no_class_is_named(what, channel, value):
    x, target = sample(2, 3, (4, 5))
    target = target.float()
    target[1, channel, -1, -1] = value
    with pytest.raises(ValueError, match=f"{what} must hold whole class indices from 0 to 2"):
        DiceCESkeletonRecallLoss()(x, target)


def test_other_forms_run_without_the_kernels(kernels_that_leave_a_trace):
    x, target = sample(2, 3, (4, 5))
    DiceCESkeletonRecallLoss(sigmoid=True)(x, target)
    x, target = sample(1, kernels.MAX_CLASSES + 1, (2, 2))
    DiceCESkeletonRecallLoss()(x, target)
    assert kernels_that_leave_a_trace == []


def test_kernels_that_cannot_be_built_are_reported_and_replaced(monkeypatch):
    def fail(*args):
        raise RuntimeError("no C compiler")

    x, target = sample(2, 3, (4, 5))
    expected = value_and_gradient(x, target, ())
    monkeypatch.setattr(kernels, "class_sums", fail)
    fused._built_kernels.cache_clear()
    with pytest.warns(UserWarning, match="Triton's cannot be built: no C compiler"):
        got = value_and_gradient(x, target, (DEVICE,))
    torch.testing.assert_close(got, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        value_and_gradient(x, target, (DEVICE,))
    fused._built_kernels.cache_clear()


def test_without_triton_nothing_changes(monkeypatch):
    x, target = sample(2, 3, (4, 5))
    expected = value_and_gradient(x, target, ())
    monkeypatch.setattr(fused, "optional_import", lambda name: (None, False))
    fused._built_kernels.cache_clear()
    torch.testing.assert_close(value_and_gradient(x, target, (DEVICE,)), expected)
    fused._built_kernels.cache_clear()


COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from monai_skelrec import kernels

constants = {"N": 14, "PAD": 16, "TILE": 128, "ROWS": 7, "IGNORE": True, "DTYPE": triton.language.float32}
types = {"x": "*fp16", "out": "*fp16", "label": "*u8", "tube": "*fp32", "weight": "*fp64", "left": "*fp64"}
types |= dict.fromkeys(("alpha", "beta", "gamma", "ce"), "*fp32")
for kernel in (kernels._class_sums, kernels._write_gradient):
    fixed = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in fixed.items()})
    for capability in (80, 90):
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
print("compiled")
"""


@pytest.mark.skipif(ON_GPU, reason="a GPU has compiled them already")
def test_they_compile_for_gpus_without_one():
    # a process of its own: here, the interpreter has taken the place of the compiler
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == "compiled", done.stderr
