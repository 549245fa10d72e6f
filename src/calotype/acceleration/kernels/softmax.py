"""Softmax of scores in float32, given in the type of the values that it weighs: one pass where PyTorch takes three."""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel

WIDEST = 32768
"""Scores of a row that a program holds at most."""


@Kernel
@triton.jit
def weights_of(x, y, width, scale, LANES: tl.constexpr):
    """exp(scale · (x - max)) of a row over its sum."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    inside = lane < width
    value = tl.load(x + row * width + lane, mask=inside, other=-float("inf")) * scale
    value = tl.exp(value - tl.max(value, axis=0))
    tl.store(y + row * width + lane, (value / tl.sum(value, axis=0)).to(y.dtype.element_ty), mask=inside)


def plain(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """The same in PyTorch."""
    return torch.softmax(x * scale, dim=-1).to(dtype)


def fused(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Softmax of ``scale`` · ``x`` (…, at most WIDEST), float32 and contiguous, over the last dimension."""
    width = x.shape[-1]
    y = torch.empty_like(x, dtype=dtype)
    lanes = triton.next_power_of_2(width)
    weights_of[(x.numel() // width,)](x, y, width, scale, lanes, num_warps=8 if lanes <= 8192 else 16)
    return y
