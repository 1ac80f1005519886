"""Logits, label and tubed skeleton -> the sums of Equation 2 and its gradient, as two Triton kernels for GPUs.

The closed form of ``fused``, for softmax and class indices: each kernel reads the logits once and holds no more than a
tile of them in registers. Needs ``triton``, which comes with PyTorch's CUDA builds for Linux.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["MAX_CLASSES", "class_sums", "write_gradient"]

MAX_CLASSES = 256  # of one voxel must fit into registers

# Numbers in a tile, and programs that walk over the tiles: enough of them to fill a GPU, few enough that what each
# leaves to be added up stays at a few megabytes.
_TILE_SIZE = 2048
_PROGRAMS = 1024
_ROWS = 7  # of what a program leaves: five sums a class, then cross-entropy and the number of voxels that are no class


@triton.jit
def _tile(x, label, tube, x_b, x_c, x_v, label_b, label_v, tube_b, tube_v, item, v, n_voxels, ignore,
          N: tl.constexpr, PAD: tl.constexpr, IGNORE: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """Logits less their maximum, and label and tube with what is not kept; classes along axis 0, voxels along 1."""
    c = tl.arange(0, PAD)
    inside = v < n_voxels
    y = tl.load(label + item * label_b + v * label_v, mask=inside, other=0)
    t = tl.load(tube + item * tube_b + v * tube_v, mask=inside, other=0)
    keep = inside
    if IGNORE:
        keep = keep & (y != ignore)
    there = (c[:, None] < N) & inside[None, :]
    z = tl.load(x + item * x_b + c[:, None] * x_c + v[None, :] * x_v, mask=there, other=0).to(DTYPE)
    z = tl.where(c[:, None] < N, z, -1e30)  # finite: what comes of it is multiplied by 0
    return z - tl.max(z, 0)[None, :], y, t, keep


@triton.jit
def _class_sums(x, label, tube, weight, left, x_b, x_c, x_v, label_b, label_v, tube_b, tube_v, n_voxels, ignore,
                N: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
                IGNORE: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    item = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, PAD)
    w = tl.load(weight + c, mask=c < N, other=0).to(DTYPE)
    # a tile's sums are short; float64 adds up what a float32 could no longer count
    i = tl.zeros((PAD,), tl.float64)
    p = tl.zeros((PAD,), tl.float64)
    g = tl.zeros((PAD,), tl.float64)
    r = tl.zeros((PAD,), tl.float64)
    s = tl.zeros((PAD,), tl.float64)
    entropy = tl.zeros((PAD,), tl.float64)
    bad = tl.zeros((PAD,), tl.float64)
    for start in range(tl.program_id(0) * TILE, n_voxels, tl.num_programs(0) * TILE):
        v = start + tl.arange(0, TILE).to(tl.int64)
        z, y, t, keep = _tile(x, label, tube, x_b, x_c, x_v, label_b, label_v, tube_b, tube_v, item, v, n_voxels,
                              ignore, N, PAD, IGNORE, DTYPE)  # fmt: skip
        e = tl.exp(z)
        total = tl.sum(e, 0)
        q = tl.where(keep[None, :], e / total[None, :], 0.0)
        is_label = (y[None, :] == c[:, None]) & (c[:, None] < N) & keep[None, :]
        is_tube = (t[None, :] == c[:, None]) & (c[:, None] > 0) & (c[:, None] < N) & keep[None, :]
        i += tl.sum(tl.where(is_label, q, 0.0), 1).to(tl.float64)
        p += tl.sum(q, 1).to(tl.float64)
        g += tl.sum(is_label.to(tl.int32), 1).to(tl.float64)
        r += tl.sum(tl.where(is_tube, q, 0.0), 1).to(tl.float64)
        s += tl.sum(is_tube.to(tl.int32), 1).to(tl.float64)
        log_total = tl.log(total)
        entropy += tl.sum(tl.where(is_label, (log_total[None, :] - z) * w[:, None], 0.0), 1).to(tl.float64)
        # a value that is a class stands in exactly one row; 0 in the tube is no class, and welcome
        labelled = tl.sum(is_label.to(tl.int32), 0)
        tubed = tl.sum(is_tube.to(tl.int32), 0) + (t == 0).to(tl.int32)
        wrong = keep & ((labelled != 1) | (tubed != 1))
        bad += tl.sum(wrong.to(tl.int32), 0).to(tl.float64)
    at = left + (item * tl.num_programs(0) + tl.program_id(0)) * ROWS * PAD + c
    tl.store(at, i)
    tl.store(at + PAD, p)
    tl.store(at + 2 * PAD, g)
    tl.store(at + 3 * PAD, r)
    tl.store(at + 4 * PAD, s)
    tl.store(at + 5 * PAD, entropy)
    tl.store(at + 6 * PAD, bad)


@triton.jit
def _write_gradient(out, x, label, tube, alpha, beta, gamma, ce, x_b, x_c, x_v, label_b, label_v, tube_b, tube_v,
                    out_b, out_c, out_v, n_voxels, ignore, N: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr,
                    IGNORE: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    item = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, PAD)
    real = c < N
    v = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    z, y, t, keep = _tile(x, label, tube, x_b, x_c, x_v, label_b, label_v, tube_b, tube_v, item, v, n_voxels,
                          ignore, N, PAD, IGNORE, DTYPE)  # fmt: skip
    e = tl.exp(z)
    q = tl.where(keep[None, :], e / tl.sum(e, 0)[None, :], 0.0)
    a = tl.load(alpha + item * N + c, mask=real, other=0)
    b = tl.load(beta + item * N + c, mask=real, other=0)
    h = tl.load(gamma + item * N + c, mask=real, other=0)
    u = tl.load(ce + c, mask=real, other=0)
    is_label = (y[None, :] == c[:, None]) & (c[:, None] < N) & keep[None, :]
    is_tube = (t[None, :] == c[:, None]) & (c[:, None] < N) & keep[None, :]
    own = tl.where(is_label, q * a[:, None] - u[:, None], 0.0) - tl.where(is_tube, q * h[:, None], 0.0)
    rest = tl.sum(q * b[:, None] + own, 0)
    d = q * (b[:, None] - rest[None, :]) + own
    at = out + item * out_b + c[:, None] * out_c + v[None, :] * out_v
    tl.store(at, d.to(out.dtype.element_ty), mask=real[:, None] & (v < n_voxels)[None, :])


def class_sums(
    logits: torch.Tensor, label: torch.Tensor, tube: torch.Tensor, weight: torch.Tensor, ignore_index: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over voxels of each item.

    Args:
        logits: shape (B, N, voxels), at most ``MAX_CLASSES`` of N, any floating dtype and strides.
        label: class indices, shape (B, 1, voxels), any dtype.
        tube: as ``label``; 0 is no tube.
        weight: of the classes in cross-entropy, shape (N,).
        ignore_index: label of voxels that count nowhere.

    Returns:
        I, P, G, R and S as shape (B, 5, N); the numerator of cross-entropy; and how many voxels hold a value that is
        no class; float64, on the device of ``logits``.
    """
    n_items, n_classes, n_voxels = logits.shape
    options = _options(logits, ignore_index)
    programs = max(1, min(triton.cdiv(n_voxels, options["TILE"]), _PROGRAMS // n_items))
    left = logits.new_empty(n_items, programs, _ROWS, options["PAD"], dtype=torch.float64)
    label, tube = _countable(label), _countable(tube)
    arguments = (logits, label, tube, weight, left, *_strides(logits, label, tube), n_voxels, ignore_index or 0)
    with torch.cuda.device_of(logits):  # Triton launches on the current one
        _class_sums[(programs, n_items)](*arguments, ROWS=_ROWS, **options)
    left = left.sum(1)
    return left[:, :5, :n_classes], left[:, 5].sum(), left[:, 6, 0].sum()


def write_gradient(
    out: torch.Tensor,
    logits: torch.Tensor,
    label: torch.Tensor,
    tube: torch.Tensor,
    slopes: list[torch.Tensor],
    ce_of_class: torch.Tensor,
    ignore_index: int | None,
) -> None:
    """Write the gradient by the logits into ``out``, shape (B, N, voxels).

    Args:
        out: any strides and floating dtype.
        logits: as in :py:func:`class_sums`, as are ``label``, ``tube`` and ``ignore_index``.
        slopes: alpha, beta and gamma, shape (B, N), of the dtype that is computed in.
        ce_of_class: slope of cross-entropy times the weight of each class, shape (N,).
    """
    n_items, n_classes, n_voxels = logits.shape
    options = _options(logits, ignore_index)
    label, tube = _countable(label), _countable(tube)
    slopes = [slope.contiguous() for slope in (*slopes, ce_of_class)]
    strides = (*_strides(logits, label, tube), *out.stride())
    with torch.cuda.device_of(logits):
        _write_gradient[(triton.cdiv(n_voxels, options["TILE"]), n_items)](
            out, logits, label, tube, *slopes, *strides, n_voxels, ignore_index or 0, **options
        )


def _options(logits: torch.Tensor, ignore_index: int | None) -> dict[str, Any]:
    pad = max(2, triton.next_power_of_2(logits.shape[1]))
    return {
        "N": logits.shape[1],
        "PAD": pad,
        "TILE": min(_TILE_SIZE // pad, 512),
        "IGNORE": ignore_index is not None,
        "DTYPE": tl.float64 if logits.dtype == torch.float64 else tl.float32,
    }


def _countable(values: torch.Tensor) -> torch.Tensor:
    return values.byte() if values.dtype == torch.bool else values


def _strides(logits: torch.Tensor, label: torch.Tensor, tube: torch.Tensor) -> tuple[int, ...]:
    return (*logits.stride(), *label.stride()[::2], *tube.stride()[::2])
