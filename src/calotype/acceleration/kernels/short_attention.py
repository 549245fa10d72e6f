"""Attention to few keys, a prompt's: a program holds all of them, so there is nothing to walk over."""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel
from calotype.acceleration.kernels.limits import can_wait, shared_memory

KEYS = 128
"""Keys that a program holds at most; with more PyTorch's own way is as quick."""
ROWS = 64
"""Queries of one head that a program reads."""


@Kernel
@triton.jit
def attended(
    q, k, v, y, rows, keys, q_batch, q_row, k_batch, k_row, scale, CHANNELS: tl.constexpr, LANES: tl.constexpr,
    PLACES: tl.constexpr, ROWS: tl.constexpr, WAITS: tl.constexpr,
):  # fmt: skip
    """softmax(scale Q Kᵀ) V of one head; ``k`` and ``v`` lie alike, heads are CHANNELS apart, ``y`` is contiguous."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * CHANNELS
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, LANES)
    place = tl.arange(0, PLACES)
    inside = channel < CHANNELS
    there = (row < rows)[:, None] & inside[None, :]
    known = place < keys
    if WAITS:  # for the end of the kernel before; then the next one may come to the processors
        tl.inline_asm_elementwise(
            "griddepcontrol.wait; griddepcontrol.launch_dependents; mov.b32 $0, 0;", "=r", [], dtype=tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip
    asked = tl.load(
        q + batch * q_batch + first + row[:, None] * q_row + channel[None, :], mask=there, other=0.0
    )
    at = batch * k_batch + first
    turned = tl.load(
        k + at + place[None, :] * k_row + channel[:, None], mask=known[None, :] & inside[:, None], other=0.0
    )
    values = tl.load(
        v + at + place[:, None] * k_row + channel[None, :], mask=known[:, None] & inside[None, :], other=0.0
    )
    scores = tl.dot(asked, turned, input_precision="ieee") * (scale * 1.4426950408889634)
    scores = tl.where(known[None, :], scores, -float("inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    total = tl.sum(weights, axis=1)
    found = tl.dot(weights.to(values.dtype), values, input_precision="ieee") / total[:, None]
    to = y + (batch * rows + row)[:, None] * (tl.num_programs(1) * CHANNELS) + first + channel[None, :]
    tl.store(to, found.to(y.dtype.element_ty), mask=there)


def plain(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """The same in PyTorch."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _sizes(k: Tensor, heads: int) -> tuple[int, int]:
    """Channels of a head and keys as the kernel holds them."""
    return max(triton.next_power_of_2(k.shape[-1] // heads), 16), max(triton.next_power_of_2(k.shape[1]), 16)


def fit(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """Whether the kernel computes this: 16 bits, one batch, keys and values laid out alike, and not too many."""
    if not (
        q.dtype in (torch.float16, torch.bfloat16)
        and q.dtype == k.dtype == v.dtype
        and q.ndim == k.ndim == 3
        and len(q) == len(k)
        and 0 < k.shape[1] <= KEYS
        and k.shape == v.shape
        and k.stride() == v.stride()
        and q.shape[-1] == k.shape[-1]
        and q.stride(-1) == k.stride(-1) == 1
    ):
        return False
    lanes, places = _sizes(k, heads)
    return lanes * (ROWS + 2 * places) * q.element_size() <= shared_memory(q.device)


def fused(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """Attention of queries (batch, n, inner) to keys and values (batch, at most KEYS, inner): (batch, n, inner)."""
    batch, rows, inner = q.shape
    lanes, places = _sizes(k, heads)
    y, waits = q.new_empty(q.shape), can_wait(q.device)
    attended[(triton.cdiv(rows, ROWS), heads, batch)](
        q, k, v, y, rows, k.shape[1], q.stride(0), q.stride(1), k.stride(0), k.stride(1), scale, inner // heads,
        lanes, places, ROWS, waits, num_warps=4, **({"launch_pdl": True} if waits else {}),
    )  # fmt: skip
    return y
