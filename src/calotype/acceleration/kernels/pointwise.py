"""Passes over one or two tensors: a gate, a bias with the block's input, a map made twice as large."""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel

COLUMNS = 1024


@Kernel
@triton.jit
def gated(x, y, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """value · gelu(gate) of rows [value, gate]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    of = row[:, None] * 2 * width + column[None, :]
    value = tl.load(x + of, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + of + width, mask=inside, other=0.0).to(tl.float32)
    gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    to = row[:, None] * width + column[None, :]
    tl.store(y + to, (value * gate).to(y.dtype.element_ty), mask=inside)


@Kernel
@triton.jit
def doubled(x, y, pixels, wide, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Each pixel of channels-last maps written to two pixels of two rows."""
    p = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    value = tl.load(x + p[:, None] * channels + c[None, :], mask=inside)
    to = (p // wide) * 4 * wide + (p % wide) * 2
    at = y + to[:, None] * channels + c[None, :]
    below = 2 * wide * channels
    tl.store(at, value, mask=inside)
    tl.store(at + channels, value, mask=inside)
    tl.store(at + below, value, mask=inside)
    tl.store(at + below + channels, value, mask=inside)


@Kernel
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
    MORE: tl.constexpr,
    BY_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """x (+ more) + bias + other, where the biases go by the column or, modulo ``channels``, by the row."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    value = tl.load(x + at, mask=inside).to(tl.float32)
    if MORE:
        value += tl.load(more + at, mask=inside).to(tl.float32)
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
    rows = x.numel() // (2 * width)
    y = x.new_empty(*x.shape[:-1], width)
    whole = math.gcd(width, COLUMNS)  # columns that leave no program half empty
    columns = whole if whole >= 128 else COLUMNS
    each = 2 * COLUMNS // columns
    gated[(triton.cdiv(rows, each), triton.cdiv(width, columns))](
        x, y, rows, width, each, columns, num_warps=4
    )
    return y


def plain_twice(x: Tensor) -> Tensor:
    """The same in PyTorch."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def twice(x: Tensor) -> Tensor:
    """A channels-last map (batch, channels, height, width) with each pixel in four: (…, 2·height, 2·width)."""
    batch, channels, height, wide = x.shape
    y = torch.empty(
        batch,
        channels,
        2 * height,
        2 * wide,
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    pixels = batch * height * wide
    columns = 128 if channels % 128 == 0 else 64
    rows = 2048 // columns
    doubled[(triton.cdiv(pixels, rows), triton.cdiv(channels, columns))](
        x, y, pixels, wide, channels, rows, columns, num_warps=4
    )
    return y


def plain_residual(
    x: Tensor, more: Tensor | None, bias: Tensor | None, other: Tensor | None = None
) -> Tensor:
    """The same in PyTorch."""
    for one in (bias, other):
        if one is not None:
            x = x + one[:, None, None]
    return x if more is None else x + more


def residual(x: Tensor, more: Tensor | None, bias: Tensor | None, other: Tensor | None = None) -> Tensor:
    """``x`` + ``more``, maps (batch, channels, height, width), + biases (channels,), in the layout of ``x``."""
    from calotype.acceleration.kernels.group_norm import nothing

    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    added = x if more is None else more.contiguous(memory_format=layout)
    batch, channels, height, wide = x.shape
    none = nothing(channels, x)
    y = torch.empty_like(x)
    rows, width = (batch * height * wide, channels) if last else (batch * channels, height * wide)
    each = 4
    columns = 512
    biased_sum[(triton.cdiv(rows, each), triton.cdiv(width, columns))](
        x, added, none if bias is None else bias, none if other is None else other, y, rows, width, channels,
        more is not None, not last, each, columns, num_warps=4,
    )  # fmt: skip
    return y
