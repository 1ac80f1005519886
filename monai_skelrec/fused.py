"""Logits, label and tubed skeleton -> Equation 2 and its gradient, each in one pass over the voxels in bounded memory.

Dice, cross-entropy and skeleton recall are sums over voxels of the probabilities, so their gradient with respect to
the logits has a closed form in those sums. The forward pass keeps the sums; the backward pass computes the
probabilities again, chunk by chunk. Nothing of the size of the logits is ever held but the gradient itself.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from monai.utils import optional_import
from torch.nn import functional as F

from .chunks import Chunk, Voxels

__all__ = ["Formula", "fused_loss"]

# exp(z) as exp2(z * log2(e)), three times faster on a CPU
_LOG2_E = 1 / math.log(2)

# where Triton's kernels serve; elsewhere PyTorch's do
KERNEL_DEVICES = ("cuda",)


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
) -> tuple[torch.Tensor, torch.Tensor]:
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
        tube: tubed skeleton, class indices or multi-hot channels, whatever ``label`` is; channel 0 is scored only
            where ``label`` has channels.
        weight: one number per channel, shape (N,), float64, on the device of ``input``.
        formula: the options.

    Returns:
        The loss, a scalar of the dtype of ``input``, float32 for half precision, which can be differentiated once, not
        twice; and, without a gradient, its terms before they are weighted: Dice, cross-entropy, skeleton recall,
        shape (3,).

    Raises:
        ValueError: when ``label`` or ``tube`` holds a value that is no class.
    """
    order = sorted(range(2, input.ndim), key=input.stride, reverse=True)
    if not _is_one_axis(input, order):
        input, order = input.contiguous(), list(range(2, input.ndim))
    collective = formula.batch and input.requires_grad and torch.is_grad_enabled()
    world = dist.get_world_size() if collective and dist.is_available() and dist.is_initialized() else 1
    loss, terms = _FusedLoss.apply(input, label, tube, weight, formula, order, world)
    return loss, terms


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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        voxels = Voxels(input, label, tube, order, formula.ignore_index)
        with torch.autocast(input.device.type, enabled=False):
            sums = _sums(voxels, weight, formula)
            if world > 1:
                dist.all_reduce(sums)
            loss, terms, slopes = _value_and_slopes(sums, weight, formula, voxels)
        # DistributedDataParallel averages the gradients of a value that is already the whole batch's
        ctx.slopes = [slope * world for slope in slopes]
        ctx.weight, ctx.formula, ctx.order = weight, formula, order
        ctx.save_for_backward(input, label, tube)
        terms = terms.to(voxels.dtype)
        ctx.mark_non_differentiable(terms)
        return loss.to(voxels.dtype), terms

    @staticmethod
    def backward(
        ctx: Any, grad_output: torch.Tensor, grad_terms: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        input, label, tube = ctx.saved_tensors
        voxels = Voxels(input, label, tube, ctx.order, ctx.formula.ignore_index, check=False)
        grad = torch.empty_like(input)
        with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
            # not on the finished gradient: in half precision a scaled loss would come too late for small values
            slopes = [(slope * grad_output).to(voxels.dtype) for slope in ctx.slopes]
            _write_gradient(voxels.rows(grad), voxels, ctx.weight, slopes, ctx.formula)
        if torch.is_grad_enabled():
            grad = _OnlyOnce.apply(grad, input, grad_output)
        return grad, None, None, None, None, None, None


class _OnlyOnce(torch.autograd.Function):
    """Makes a second derivative an error; without it, it would silently be 0."""

    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, *depends_on: torch.Tensor) -> torch.Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        raise RuntimeError("DiceCESkeletonRecallLoss can be differentiated once, not twice: avoid create_graph=True.")


def _kernels(voxels: Voxels, formula: Formula) -> Any:
    """The module of Triton's kernels where it can serve, else None."""
    one_channel = voxels.label.shape[1] == 1 and voxels.tube.shape[1] == 1
    if voxels.logits.device.type not in KERNEL_DEVICES or formula.sigmoid or not one_channel:
        return None
    kernels = _built_kernels(voxels.logits.device)
    return kernels if kernels is not None and voxels.n_classes <= kernels.MAX_CLASSES else None


@functools.cache
def _built_kernels(device: torch.device) -> Any:
    kernels, installed = optional_import("monai_skelrec.kernels")
    if not installed:
        return None
    probe = torch.zeros(1, 2, 1, device=device)
    try:
        kernels.class_sums(probe, probe[:, :1], probe[:, :1], probe[0, :, 0].double(), None)
    except Exception as error:  # Triton compiles on the user's machine, which may lack a compiler
        warnings.warn(f"the loss runs on PyTorch's slower kernels on {device}, for Triton's cannot be built: {error}")
        return None
    return kernels


def _softmax(chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities in the first block, 0 where ignored, and the logarithm of the probability of each label."""
    p = chunk.blocks[0].copy_(chunk.logits)
    p -= p.amax(0)
    at_label = p.view(-1).index_select(0, chunk.label.entries)
    total = p.mul_(_LOG2_E).exp2_().sum(0)
    p *= 1 / total if chunk.keep is None else chunk.keep / total
    return p, at_label.sub_(total.log_()[chunk.label.where])


# rows of the sums of one item; the last two numbers of all are the cross-entropy and what it is divided by
_I, _P, _G, _R, _S = range(5)


def _sums(voxels: Voxels, weight: torch.Tensor | None, formula: Formula) -> torch.Tensor:
    """All sums over voxels, as one float64 vector: counts are exact up to 2**53."""
    n_classes = voxels.n_classes
    n_items = 1 if formula.batch else len(voxels.logits)
    w = None if weight is None else weight.to(voxels.dtype)

    def add(chunk: Chunk) -> tuple[int, torch.Tensor, torch.Tensor]:
        label, tube = chunk.label, chunk.tube
        hits = chunk.blocks[1]
        entropy = torch.zeros(2, dtype=torch.float64, device=hits.device)
        if formula.sigmoid:
            p = chunk.blocks[0].copy_(chunk.logits)
            ce = torch.neg(F.logsigmoid(-p), out=hits)
            at_label = -F.logsigmoid(p.view(-1).index_select(0, label.entries))
            ce.view(-1)[label.entries] = at_label if w is None else w[label.classes] * at_label
            p.sigmoid_()
            if chunk.keep is not None:
                ce *= chunk.keep
                p *= chunk.keep
            entropy[0] = ce.sum(dtype=torch.float64)
            entropy[1] = n_classes * (p.shape[1] if chunk.keep is None else chunk.keep.sum())
            at_label = p.view(-1).index_select(0, label.entries)
        else:
            p, at_label = _softmax(chunk)
            entropy[0] = -(at_label if w is None else w[label.classes] * at_label).sum(dtype=torch.float64)
            at_label.exp_()
        sums = torch.zeros(5, n_classes, dtype=torch.float64, device=hits.device)
        sums[_P] = p.sum(1)
        sums[_R].index_add_(0, tube.classes, p.view(-1).index_select(0, tube.entries).double())
        hits.zero_().view(-1).index_add_(0, label.entries, at_label)
        sums[_I] = hits.sum(1)
        for size, pairs in ((_G, label), (_S, tube)):
            sums[size] = torch.bincount(pairs.classes, minlength=n_classes)
        return 0 if formula.batch else chunk.item, sums, entropy

    total = voxels.logits.new_zeros(5 * n_items * n_classes + 2, dtype=torch.float64)
    per_class = total[:-2].view(n_items, 5, n_classes)
    kernels = _kernels(voxels, formula)
    if kernels is not None:
        w = torch.ones_like(per_class[0, 0]) if weight is None else weight
        of_items, entropy, n_bad = kernels.class_sums(voxels.logits, voxels.label, voxels.tube, w, formula.ignore_index)
        if n_bad > 0:
            voxels.map(lambda chunk: None)  # reads the values one by one, and says which one is no class
        per_class += of_items.sum(0) if formula.batch else of_items
        total[-2] = entropy
    else:
        for item, sums, entropy in voxels.map(add):
            per_class[item] += sums
            total[-2:] += entropy
    if not formula.sigmoid:
        g = per_class[:, _G]
        total[-1] = (g if weight is None else g * weight).sum()
    return total


def _value_and_slopes(
    sums: torch.Tensor, weight: torch.Tensor | None, formula: Formula, voxels: Voxels
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The loss, its unweighted terms, and their slopes: alpha, beta, gamma of shape (B or 1, N), cross-entropy's."""
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
    share = weight * in_dice * (union > 0)
    share = share / (len(i) * in_dice.sum()) if mean else share
    union = torch.where(union > 0, union, 1)
    ratio = (2 * i + formula.smooth_nr) / union
    dice = (share * (1 - ratio)).sum()
    share = formula.lambda_dice * share
    alpha, beta = -2 * share / union, share * ratio / union

    present = in_recall * (s > 0)
    share = weight * present
    if mean:
        scored = present.sum(1, keepdim=True) if formula.absent == "skip" else in_recall.sum()
        share = share / (len(i) * scored.clamp(min=1))
    size = (s + formula.smooth_dr).clamp(min=1e-8)
    recall = (share * (1 - (r + formula.smooth_nr) / size)).sum()
    gamma = formula.lambda_skeleton * share / size

    share = (ce_size > 0).double()
    share = share / torch.where(ce_size > 0, ce_size, 1) if mean else share
    entropy = share * ce

    loss = formula.lambda_dice * dice + formula.lambda_ce * entropy + formula.lambda_skeleton * recall
    return loss, torch.stack([dice, entropy, recall]), [alpha, beta, gamma, formula.lambda_ce * share]


def _write_gradient(
    out: torch.Tensor, voxels: Voxels, weight: torch.Tensor | None, slopes: list[torch.Tensor], formula: Formula
) -> None:
    """Write the gradient by the logits into ``out``, shape (B, N, voxels)."""
    alpha, beta, gamma = (slope.expand(len(out), -1) for slope in slopes[:3])
    ce, sigmoid = slopes[3], formula.sigmoid
    ce_of_class = None if weight is None else ce * weight.to(ce)
    kernels = _kernels(voxels, formula)
    if kernels is not None:
        of_class = ce.expand(voxels.n_classes) if ce_of_class is None else ce_of_class
        logits, label, tube = voxels.logits, voxels.label, voxels.tube
        kernels.write_gradient(out, logits, label, tube, [alpha, beta, gamma], of_class, formula.ignore_index)
        return

    def write(chunk: Chunk) -> None:
        label, tube = chunk.label, chunk.tube
        a, b, c = alpha[chunk.item], beta[chunk.item], gamma[chunk.item]
        d = chunk.blocks[1]
        ce_at_label = ce if ce_of_class is None else ce_of_class[label.classes]
        if sigmoid:
            p = chunk.blocks[0].copy_(chunk.logits).sigmoid_()
            p = p if chunk.keep is None else p.mul_(chunk.keep)
            at_label, at_tube = (p.view(-1).index_select(0, pairs.entries) for pairs in (label, tube))
            at_label = a[label.classes] * at_label * (1 - at_label) + (ce_at_label - ce) * at_label - ce_at_label
            at_tube = c[tube.classes] * at_tube * (1 - at_tube)
            torch.mul((1 - p).mul_(b[:, None]).add_(ce), p, out=d)
        else:
            p, log_p = _softmax(chunk)
            at_label = log_p.exp_().mul_(a.index_select(0, label.classes)).sub_(ce_at_label)
            at_tube = c[tube.classes] * p.view(-1).index_select(0, tube.entries)
            rest = torch.mul(p, b[:, None], out=d).sum(0).neg_()
            rest[label.where] -= at_label
            rest.index_add_(0, tube.voxels, at_tube)
            d.addcmul_(p, rest)
        d.view(-1).index_add_(0, label.entries, at_label)
        d.view(-1).index_add_(0, tube.entries, at_tube, alpha=-1)
        out[chunk.item, :, chunk.span] = d

    voxels.map(write)
