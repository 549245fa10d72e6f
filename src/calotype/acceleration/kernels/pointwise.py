"""Passes over one or two tensors that follow a matrix product: a gate, and a bias with the block's input."""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024


@triton.jit
def gated(x, y, width, COLUMNS: tl.constexpr):
    """value · gelu(gate) of rows [value, gate]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    value = tl.load(x + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + row * width + column, (value * gate).to(y.dtype.element_ty), mask=inside)


@triton.jit
def biased_sum(
    x,
    more,
    bias,
    other,
    y,
    rows,
    width,
    channels,
    BY_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """x + more + bias + other, where the biases go by the column or, modulo ``channels``, by the row."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    value = tl.load(x + at, mask=inside).to(tl.float32) + tl.load(more + at, mask=inside).to(tl.float32)
    if BY_ROW:
        c = row % channels
        b = tl.load(bias + c).to(tl.float32) + tl.load(other + c).to(tl.float32)
        value += b[:, None]
    else:
        there = column < width
        b = tl.load(bias + column, mask=there, other=0.0).to(tl.float32)
        b += tl.load(other + column, mask=there, other=0.0).to(tl.float32)
        value += b[None, :]
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


def plain_geglu(x: Tensor) -> Tensor:
    """The same in PyTorch."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def geglu(x: Tensor) -> Tensor:
    """``value · gelu(gate)`` of (…, 2·n), the halves of whose last dimension are value and gate: (…, n)."""
    x = x.contiguous()
    width = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], width)
    gated[(x.numel() // (2 * width), triton.cdiv(width, COLUMNS))](x, y, width, COLUMNS, num_warps=4)
    return y


def plain_residual(x: Tensor, more: Tensor, bias: Tensor | None, other: Tensor | None = None) -> Tensor:
    """The same in PyTorch."""
    for one in (bias, other):
        if one is not None:
            x = x + one[:, None, None]
    return x + more


def residual(x: Tensor, more: Tensor, bias: Tensor | None, other: Tensor | None = None) -> Tensor:
    """``x`` + ``more``, maps (batch, channels, height, width), + biases (channels,), in the layout of ``x``."""
    from calotype.acceleration.kernels.group_norm import nothing

    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    x, more = x.contiguous(memory_format=layout), more.contiguous(memory_format=layout)
    batch, channels, height, wide = x.shape
    none = nothing(channels, x)
    y = torch.empty_like(x)
    rows, width = (batch * height * wide, channels) if last else (batch * channels, height * wide)
    each = 4
    columns = 512
    biased_sum[(triton.cdiv(rows, each), triton.cdiv(width, columns))](
        x, more, none if bias is None else bias, none if other is None else other, y, rows, width, channels,
        not last, each, columns, num_warps=4,
    )  # fmt: skip
    return y
