"""Dice, cross-entropy and skeleton recall written out on one-hot tensors: an oracle for the closed form."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot


def plain_loss(
    x,
    target,
    include_background=False,
    lambda_dice=1.0,
    lambda_ce=1.0,
    lambda_skeleton=1.0,
    sigmoid=False,
    reduction="mean",
    smooth_nr=1e-5,
    smooth_dr=1e-5,
    batch=False,
    weight=None,
    absent="skip",
    ignore_index=None,
):
    """lambda_dice D + lambda_ce CE + lambda_skeleton R, term by term as defined, in float64."""
    x, target = x.double().flatten(2), target.flatten(2)
    n_classes = x.shape[1]
    multi_hot, shared = target.shape[1] == 2 * n_classes, target.shape[1] == 1 + n_classes > 2
    label, tube = target.split([1, n_classes] if shared else target.shape[1] // 2, 1)
    m = (label != ignore_index).all(1, keepdim=True) if ignore_index is not None else torch.ones_like(label[:, :1]) > 0
    label, tube = label.where(m, 0).long(), tube.where(m, 0).long()
    label, tube = (
        t if hot else one_hot(t[:, 0], n_classes).movedim(-1, 1)
        for t, hot in ((label, multi_hot), (tube, multi_hot or shared))
    )
    m, y, t = m.double(), label * m.double(), tube * m.double()
    w = torch.ones(n_classes, device=x.device).double() if weight is None else weight.to(x)
    w_of_class = torch.ones_like(w) if n_classes == 1 else w
    mean = reduction == "mean"

    if sigmoid:
        p = torch.sigmoid(x)
        ce = binary_cross_entropy_with_logits(x, y, pos_weight=w[:, None], reduction="none")
        ce, size = (m * ce).sum(), n_classes * m.sum()
    else:
        p = torch.softmax(x, 1)
        ce = (m[:, 0] * cross_entropy(x, label.argmax(1), weight=w, reduction="none")).sum()
        size = (w[:, None] * y).sum()
    if mean:
        ce = ce / size if size > 0 else 0 * ce

    axes = [0, 2] if batch else [2]
    i, s_p, g, r, s = (v.sum(axes).reshape(-1, n_classes) for v in (p * y, m * p, y, p * t, t))
    k = slice(None) if include_background or n_classes == 1 else slice(1, None)
    dice = (w_of_class * (1 - (2 * i + smooth_nr) / (s_p + g + smooth_dr)))[:, k]
    c = slice(None) if multi_hot else slice(1, None)
    recall = torch.where(s > 0, w_of_class * (1 - (r + smooth_nr) / (s + smooth_dr)), 0 * r)[:, c]
    if not mean:
        return lambda_dice * dice.sum() + lambda_ce * ce + lambda_skeleton * recall.sum()
    n = (s[:, c] > 0).sum(1).clamp(min=1) if absent == "skip" else recall.shape[1]
    return lambda_dice * dice.mean() + lambda_ce * ce + lambda_skeleton * (recall.sum(1) / n).mean()
