"""Rows in eight bits, and sums of their products back in floating point: a kernel each."""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel


@Kernel
@triton.jit
def rows_quantised(
    x,
    values,
    scales,
    rows,
    width,
    top,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Each row over its factor, which brings its largest value to ``top``; rounded to even where values are whole."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    inside = (row < rows)[:, None] & (lane < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + lane[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=1), 1e-12) / top
    y = value / scale[:, None]
    y = tl.minimum(tl.maximum(y, -top), top)
    if WHOLE:
        # adding and taking away 1.5 * 2^23 rounds to the nearest whole number
        y = (y + 12582912.0) - 12582912.0
    tl.store(values + at, y.to(values.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale, mask=row < rows)


@Kernel
@triton.jit
def sums_scaled(
    sums,
    rows,
    columns,
    bias,
    out,
    count,
    width,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """``sums`` times the factor of the row and of the column, plus the column's bias."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = (row < count)[:, None] & (lane < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + lane[None, :]
    r = tl.load(rows + row, mask=row < count, other=0.0)
    c = tl.load(columns + lane, mask=lane < width, other=0.0)
    value = tl.load(sums + at, mask=inside, other=0).to(tl.float32) * r[:, None] * c[None, :]
    if BIAS:
        value += tl.load(bias + lane, mask=lane < width, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def quantised(x: Tensor, dtype: torch.dtype, top: float) -> tuple[Tensor, Tensor]:
    """(rows, width) in eight bits, and the factors (rows, 1) in float32."""
    x = x.contiguous()
    rows, width = x.shape
    values = torch.empty(x.shape, dtype=dtype, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    lanes = triton.next_power_of_2(width)
    each = max(2048 // lanes, 1)
    rows_quantised[(triton.cdiv(rows, each),)](
        x, values, scales, rows, width, top, dtype == torch.int8, each, lanes, num_warps=4
    )
    return values, scales


def dequantised(
    sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Sums (rows, columns) times the factors (rows, 1) and (columns, 1), plus the bias (columns,)."""
    count, width = sums.shape
    out = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    lanes = min(triton.next_power_of_2(width), 512)
    each = max(2048 // lanes, 1)
    sums_scaled[(triton.cdiv(count, each), triton.cdiv(width, lanes))](
        sums, rows, columns, rows if bias is None else bias, out, count, width, bias is not None, each, lanes,
        num_warps=4,
    )  # fmt: skip
    return out
