"""Layer normalisation of a sum: one kernel adds what a layer has found and normalises (https://arxiv.org/abs/1607.06450)."""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel


@Kernel
@triton.jit
def rows_normalised(
    x,
    more,
    total,
    y,
    weight,
    bias,
    rows,
    width,
    eps,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Each row of ``x`` (+ ``more``, stored as ``total``) normalised, scaled and shifted."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    inside = (row < rows)[:, None] & (lane < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + lane[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(more + at, mask=inside, other=0.0).to(tl.float32)
        kept = value.to(total.dtype.element_ty)
        tl.store(total + at, kept, mask=inside)
        value = kept.to(tl.float32)
    mean = tl.sum(value, axis=1) / width
    apart = tl.where(inside, value - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(apart * apart, axis=1) / width + eps)
    w = tl.load(weight + lane, mask=lane < width, other=0.0).to(tl.float32)
    b = tl.load(bias + lane, mask=lane < width, other=0.0).to(tl.float32)
    result = apart * scale[:, None] * w[None, :] + b[None, :]
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


def plain(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same in PyTorch."""
    total = x if more is None else x + more
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def fused(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``x`` + ``more`` (…, channels), and that normalised over the channels."""
    x = x.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    y = torch.empty_like(x)
    total = x if more is None else torch.empty_like(x)
    lanes = triton.next_power_of_2(width)
    each = max(2048 // lanes, 1)
    rows_normalised[(triton.cdiv(rows, each),)](
        x, x if more is None else more.contiguous(), total, y, weight, bias, rows, width, eps, more is not None,
        each, lanes, num_warps=4,
    )  # fmt: skip
    return total, y
