"""Logits, label and tubed skeleton -> Equation 2 and its gradient, each in one pass over the voxels in bounded memory.

Dice, cross-entropy and skeleton recall are sums over voxels of the probabilities, so their gradient with respect to
the logits has a closed form in those sums. The forward pass keeps the sums; the backward pass computes the
probabilities again, chunk by chunk. Nothing of the size of the logits is ever held but the gradient itself.

In a chunk, a label or a tube is a list of (class, voxel) pairs: one pair a voxel for class indices, one a positive
entry for multi-hot channels. Neither is ever expanded to one channel per class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["Formula", "fused_loss"]

_T = TypeVar("_T")

# exp(z) as exp2(z * log2(e)), three times faster on a CPU
_LOG2_E = 1 / math.log(2)

# Bytes of the probabilities of one chunk. On a CPU a chunk and its scratch stay in the second-level cache; elsewhere
# few kernels matter more, and about four blocks of this size live at once.
CPU_CHUNK_BYTES = 2**22
GPU_CHUNK_BYTES = 2**23


class Formula(NamedTuple):
    """What is computed from the tensors; the names are those of :py:class:`monai_skelrec.DiceCESkeletonRecallLoss`."""

    include_background: bool
    lambda_dice: float
    lambda_ce: float
    lambda_skeleton: float
    sigmoid: bool
    reduction: str
    smooth_nr: float
    smooth_dr: float
    batch: bool
    absent: str
    ignore_index: int | None


def fused_loss(
    input: torch.Tensor, label: torch.Tensor, tube: torch.Tensor, weight: torch.Tensor | None, formula: Formula
) -> torch.Tensor:
    r"""Weighted sum of Dice, cross-entropy and one minus skeleton recall, without intermediate tensors.

    With :math:`p` the probabilities and :math:`Y, T` the label and the tube as 0 and 1 per class, and, per item and
    class over the voxels that are not ignored,
    :math:`I=\sum pY,\ P=\sum p,\ G=\sum Y,\ R=\sum pT,\ S=\sum T`, the loss is

    .. math::
        \lambda_{dice}\,\overline{w\Bigl(1-\tfrac{2I+n}{P+G+d}\Bigr)} + \lambda_{ce}\,CE
        + \lambda_{skeleton}\,\overline{w\Bigl(1-\tfrac{R+n}{S+d}\Bigr)}

    With :math:`\alpha, \beta, -\gamma` its derivatives by :math:`I, P, R`, the gradient of the first and the last
    term by the probabilities is :math:`g = \alpha Y + \beta - \gamma T`, and by the logits
    :math:`p_k (g_k - \sum_c g_c p_c)` for softmax and :math:`p (1 - p) g` for sigmoid; cross-entropy adds
    :math:`\propto w_y (p_k - Y_k)` and :math:`\propto p (1 + (w - 1) Y) - w Y`.

    Args:
        input: logits, shape BNH[WD], any floating dtype; half precision is computed in float32.
        label: class indices, shape B1H[WD], or multi-hot channels, shape BNH[WD], for sigmoid.
        tube: tubed skeleton in the form of ``label``.
        weight: one number per channel, shape (N,), float64, on the device of ``input``.
        formula: the options.

    Returns:
        Scalar of the dtype of ``input``, float32 for half precision. It can be differentiated once, not twice.

    Raises:
        ValueError: when ``label`` or ``tube`` holds a value that is no class.
    """
    order = sorted(range(2, input.ndim), key=input.stride, reverse=True)
    if not _is_one_axis(input, order):
        input, order = input.contiguous(), list(range(2, input.ndim))
    collective = formula.batch and input.requires_grad and torch.is_grad_enabled()
    world = dist.get_world_size() if collective and dist.is_available() and dist.is_initialized() else 1
    loss: torch.Tensor = _FusedLoss.apply(input, label, tube, weight, formula, order, world)
    return loss


def _is_one_axis(x: torch.Tensor, order: list[int]) -> bool:
    """Whether the spatial axes, slowest first, are one axis in memory, so that a chunk of voxels is a view."""
    axes = [axis for axis in order if x.shape[axis] > 1]
    return all(x.stride(slow) == x.stride(fast) * x.shape[fast] for slow, fast in zip(axes, axes[1:]))


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        label: torch.Tensor,
        tube: torch.Tensor,
        weight: torch.Tensor | None,
        formula: Formula,
        order: list[int],
        world: int,
    ) -> torch.Tensor:
        voxels = _Voxels(input, label, tube, order, formula.ignore_index)
        with torch.autocast(input.device.type, enabled=False):
            sums = _sums(voxels, weight, formula)
            if world > 1:
                dist.all_reduce(sums)
            loss, slopes = _value_and_slopes(sums, weight, formula, voxels)
        # DistributedDataParallel averages the gradients of a value that is already the whole batch's
        ctx.slopes = [slope * world for slope in slopes]
        ctx.weight, ctx.formula, ctx.order = weight, formula, order
        ctx.save_for_backward(input, label, tube)
        return loss.to(voxels.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, label, tube = ctx.saved_tensors
        voxels = _Voxels(input, label, tube, ctx.order, ctx.formula.ignore_index, check=False)
        grad = torch.empty_like(input)
        with torch.autocast(input.device.type, enabled=False):
            # not on the finished gradient: in half precision a scaled loss would come too late for small values
            slopes = [(slope * grad_output).to(voxels.dtype) for slope in ctx.slopes]
            _write_gradient(voxels.rows(grad), voxels, ctx.weight, slopes, ctx.formula.sigmoid)
        return grad, None, None, None, None, None, None


class _Pairs(NamedTuple):
    """The positive entries of a label or a tube in a chunk."""

    classes: torch.Tensor
    voxels: torch.Tensor | slice  # everything, where each voxel has exactly one class
    entries: torch.Tensor  # position in the flattened (N, voxels) block


class _Chunk(NamedTuple):
    """Some voxels of one item, with two blocks of the shape of the logits to write to."""

    item: int
    span: slice
    logits: torch.Tensor  # (N, voxels)
    keep: torch.Tensor | None  # (voxels,), False where ignored; None where nothing can be
    label: _Pairs
    tube: _Pairs
    blocks: tuple[torch.Tensor, torch.Tensor]


class _Voxels:
    """Logits, label and tube of a batch, read chunk by chunk in the order in which the logits lie in memory."""

    def __init__(
        self,
        input: torch.Tensor,
        label: torch.Tensor,
        tube: torch.Tensor,
        order: list[int],
        ignore_index: int | None,
        check: bool = True,
    ) -> None:
        self.order = order
        self.ignore_index = ignore_index
        self.check = check
        self.logits, self.label, self.tube = self.rows(input), self.rows(label), self.rows(tube)
        self.n_classes = input.shape[1]
        self.multi_hot = label.shape[1] == self.n_classes
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, N, voxels); a view for the logits and their gradient."""
        return x.permute(0, 1, *self.order).flatten(2)

    def map(self, work: Callable[[Iterator[_Chunk]], _T]) -> list[_T]:
        """Hand all chunks to ``work``, on a CPU in equal shares to one thread a core.

        Threads of our own, each with PyTorch's own threading off: a chunk is thousands of times smaller than a
        tensor, and joining all cores after each operation on it costs seconds where cores are shared, as with data
        loading.
        """
        n_items, n_classes, n_voxels = self.logits.shape
        on_cpu = self.logits.device.type == "cpu"
        # pairs and other numbers per voxel weigh as much as some 16 classes
        step = max(1, (CPU_CHUNK_BYTES if on_cpu else GPU_CHUNK_BYTES) // (4 * (n_classes + 16)))
        spans = [(item, slice(start, start + step)) for item in range(n_items) for start in range(0, n_voxels, step)]
        threads = torch.get_num_threads()
        if not on_cpu or threads == 1 or len(spans) == 1:
            return [work(self._chunks(spans))]

        def share(first: int) -> _T:
            torch.set_num_threads(1)
            try:
                with torch.no_grad():
                    return work(self._chunks(spans[first::threads]))
            finally:
                torch.set_num_threads(threads)

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(share, range(threads)))

    def _chunks(self, spans: list[tuple[int, slice]]) -> Iterator[_Chunk]:
        size = max((span.stop - span.start for _, span in spans), default=0) * self.n_classes
        scratch = self.logits.new_empty(2, size, dtype=self.dtype)
        for item, span in spans:
            logits, label, tube = (x[item, :, span] for x in (self.logits, self.label, self.tube))
            keep = None if self.ignore_index is None else (label != self.ignore_index).all(0)
            first, second = scratch[:, : logits.numel()].view(2, *logits.shape)
            yield _Chunk(
                item,
                span,
                logits,
                keep,
                self._pairs("label", label, keep, with_background=True),
                self._pairs("tubed skeleton", tube, keep, with_background=False),
                (first, second),
            )

    def _pairs(self, name: str, values: torch.Tensor, keep: torch.Tensor | None, with_background: bool) -> _Pairs:
        n_voxels = values.shape[1]
        if self.multi_hot:
            positive = values != 0 if keep is None else (values != 0) & keep
            classes, voxels = positive.nonzero(as_tuple=True)
            if self.check and (values[classes, voxels] != 1).any():
                raise ValueError(f"{name} must be 0 or 1 in each of its {self.n_classes} channels, got other values.")
            return _Pairs(classes, voxels, classes * n_voxels + voxels)
        index = values[0]
        every = with_background and keep is None
        if every:
            voxels = torch.arange(n_voxels, device=index.device)
        else:
            # a label takes part where it is kept, a tube where it also has a class
            wanted = index if keep is None else keep if with_background else (index != 0) & keep
            voxels = wanted.nonzero()[:, 0]
            index = index[voxels]
        classes = index.long()
        if self.check and len(classes) > 0:
            low, high = classes.aminmax()
            if low < 0 or high >= self.n_classes or (index.is_floating_point() and (index != classes).any()):
                raise ValueError(
                    f"{name} must hold whole class indices from 0 to {self.n_classes - 1}"
                    f"{'' if self.ignore_index is None else f' or ignore_index={self.ignore_index}'}, "
                    f"got values from {index.min().item():g} to {index.max().item():g}."
                )
        return _Pairs(classes, slice(None) if every else voxels, (classes * n_voxels).add_(voxels))


def _softmax(chunk: _Chunk) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities in the first block, 0 where ignored, and the logarithm of the probability of each label."""
    p = chunk.blocks[0]
    torch.sub(chunk.logits, chunk.logits.amax(0).to(p.dtype), out=p)
    at_label = p.view(-1)[chunk.label.entries]
    total = p.mul_(_LOG2_E).exp2_().sum(0)
    p *= 1 / total if chunk.keep is None else chunk.keep / total
    return p, at_label.sub_(total.log_()[chunk.label.voxels])


# rows of the sums of one item; the last two numbers are the cross-entropy and what it is divided by
_I, _P, _G, _R, _S = range(5)


def _sums(voxels: _Voxels, weight: torch.Tensor | None, formula: Formula) -> torch.Tensor:
    """All sums over voxels, as one float64 vector: counts are exact up to 2**53."""
    n_classes = voxels.n_classes
    n_items = 1 if formula.batch else len(voxels.logits)
    w = None if weight is None else weight.to(voxels.dtype)

    def add(chunks: Iterator[_Chunk]) -> torch.Tensor:
        sums = voxels.logits.new_zeros(5 * n_items * n_classes + 2, dtype=torch.float64)
        per_class = sums[:-2].view(n_items, 5, n_classes)
        for chunk in chunks:
            of_item = per_class[0 if formula.batch else chunk.item]
            label, tube = chunk.label, chunk.tube
            hits = chunk.blocks[1]
            if formula.sigmoid:
                p = chunk.blocks[0].copy_(chunk.logits)
                ce = torch.neg(F.logsigmoid(-p), out=hits)
                at_label = -F.logsigmoid(p.view(-1)[label.entries])
                ce.view(-1)[label.entries] = at_label if w is None else w[label.classes] * at_label
                p.sigmoid_()
                if chunk.keep is not None:
                    ce *= chunk.keep
                    p *= chunk.keep
                sums[-2] += ce.sum(dtype=torch.float64)
                sums[-1] += n_classes * (p.shape[1] if chunk.keep is None else chunk.keep.sum())
                at_label = p.view(-1)[label.entries]
            else:
                p, at_label = _softmax(chunk)
                sums[-2] -= (at_label if w is None else w[label.classes] * at_label).sum(dtype=torch.float64)
                at_label.exp_()
            of_item[_P] += p.sum(1)
            of_item[_R].index_add_(0, tube.classes, p.view(-1)[tube.entries].double())
            hits.zero_().view(-1)[label.entries] = at_label
            of_item[_I] += hits.sum(1)
            for size, pairs in ((_G, label), (_S, tube)):
                of_item[size] += torch.bincount(pairs.classes, minlength=n_classes)
        if not formula.sigmoid:
            g = per_class[:, _G]
            sums[-1] = (g if weight is None else g * weight).sum()
        return sums

    return torch.stack(voxels.map(add)).sum(0)


def _value_and_slopes(
    sums: torch.Tensor, weight: torch.Tensor | None, formula: Formula, voxels: _Voxels
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and the slopes of its terms: alpha, beta and gamma of shape (B or 1, N), and that of cross-entropy."""
    n_classes = voxels.n_classes
    i, p, g, r, s = sums[:-2].view(-1, 5, n_classes).unbind(1)
    ce, ce_size = sums[-2:]
    # one channel has nothing to be weighed against: its weight is that of its positive voxels in cross-entropy
    weight = torch.ones_like(i[0]) if weight is None or n_classes == 1 else weight
    mean = formula.reduction == "mean"

    in_dice, in_recall = torch.ones_like(weight), torch.ones_like(weight)
    in_dice[0] = formula.include_background or n_classes == 1
    in_recall[0] = voxels.multi_hot

    union = p + g + formula.smooth_dr
    share = formula.lambda_dice * weight * in_dice * (union > 0)
    share = share / (len(i) * in_dice.sum()) if mean else share
    union = torch.where(union > 0, union, 1)
    ratio = (2 * i + formula.smooth_nr) / union
    loss = (share * (1 - ratio)).sum()
    alpha, beta = -2 * share / union, share * ratio / union

    present = in_recall * (s > 0)
    share = formula.lambda_skeleton * weight * present
    if mean:
        scored = present.sum(1, keepdim=True) if formula.absent == "skip" else in_recall.sum()
        share = share / (len(i) * scored.clamp(min=1))
    size = (s + formula.smooth_dr).clamp(min=1e-8)
    loss += (share * (1 - (r + formula.smooth_nr) / size)).sum()
    gamma = share / size

    slope = formula.lambda_ce * (ce_size > 0).double()
    slope = slope / torch.where(ce_size > 0, ce_size, 1) if mean else slope
    return loss + slope * ce, [alpha, beta, gamma, slope]


def _write_gradient(
    out: torch.Tensor, voxels: _Voxels, weight: torch.Tensor | None, slopes: list[torch.Tensor], sigmoid: bool
) -> None:
    """Write the gradient by the logits into ``out``, shape (B, N, voxels)."""
    alpha, beta, gamma = (slope.expand(len(out), -1) for slope in slopes[:3])
    ce = slopes[3]
    ce_of_class = None if weight is None else ce * weight.to(ce)

    def write(chunks: Iterator[_Chunk]) -> None:
        for chunk in chunks:
            label, tube = chunk.label, chunk.tube
            a, b, c = alpha[chunk.item], beta[chunk.item], gamma[chunk.item]
            d = chunk.blocks[1]
            ce_at_label = ce if ce_of_class is None else ce_of_class[label.classes]
            if sigmoid:
                p = chunk.blocks[0].copy_(chunk.logits).sigmoid_()
                p = p if chunk.keep is None else p.mul_(chunk.keep)
                at_label, at_tube = p.view(-1)[label.entries], p.view(-1)[tube.entries]
                at_label = a[label.classes] * at_label * (1 - at_label) + (ce_at_label - ce) * at_label - ce_at_label
                at_tube = c[tube.classes] * at_tube * (1 - at_tube)
                torch.mul((1 - p).mul_(b[:, None]).add_(ce), p, out=d)
            else:
                p, log_p = _softmax(chunk)
                at_label = log_p.exp_().mul_(a[label.classes]).sub_(ce_at_label)
                at_tube = c[tube.classes] * p.view(-1)[tube.entries]
                rest = torch.mul(p, b[:, None], out=d).sum(0).neg_()
                rest[label.voxels] -= at_label
                rest[tube.voxels] += at_tube
                d.addcmul_(p, rest)
            d.view(-1).index_add_(0, label.entries, at_label)
            d.view(-1).index_add_(0, tube.entries, at_tube, alpha=-1)
            out[chunk.item, :, chunk.span] = d

    voxels.map(write)
