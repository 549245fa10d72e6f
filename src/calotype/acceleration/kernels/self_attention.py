"""Attention to many keys on Hopper: heads are narrow, so that exponentials take longer than products, and both overlap.

The kernel is CUDA C++ (``cuda/attention.cu``). As in FlashAttention-3 (https://arxiv.org/abs/2407.08608) the copy
engine brings keys and values while warpgroups take turns at products and exponentials; heads of 40 channels are not
computed as if they were of 64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.acceleration.cuda.program import Missing, Source, Tiles, bindings, launch
from calotype.acceleration.kernels.limits import processors, shared_memory

CAPABILITY = (9, 0)
"""The instructions are those of this compute capability alone."""
LANES = 64
"""Channels in a box of the copy engine, whose rows are 128 bytes."""
REGISTERS = {2: 232, 3: 160, 4: 112}
"""Of a thread that multiplies, by warpgroups of such; one more, which asks for copies, gives up most of its own."""


@dataclass(frozen=True)
class Plan:
    """How the work of heads of some width is divided."""

    warpgroups: int
    """Of 64 queries each, in a program."""
    keys: int
    """That are weighed at a time, a multiple of 16."""
    slots: int
    """Tiles of keys or values that are near at a time."""
    polynomial: int = 0
    """Exponentials of eight that are computed as polynomials."""
    ordered: bool = False
    """Whether warpgroups take turns at products."""
    totals: bool = False
    """Whether the product with values sums the weights too: boxes have room for a column of ones past the channels."""
    lazy: bool = False
    """Whether sums are left alone while what they would be multiplied by is one."""
    least: int = 0
    """Queries and keys from which on this is quicker than PyTorch's own way."""

    def shared(self, channels: int) -> int:
        """Bytes near a processor, with what aligns them."""
        return self.slots * (math.ceil(channels / LANES) * self.keys * 2 * LANES + 24) + 1024

    def width(self, channels: int) -> int:
        """Columns of the product with values."""
        return channels + 8 * self.totals

    def source(self, channels: int, dtype: torch.dtype) -> Source:
        kind = "f16" if dtype == torch.float16 else "bf16"
        defined: dict[str, str | int | float] = {
            "WARPGROUPS": self.warpgroups,
            "REGISTERS": REGISTERS[self.warpgroups],
            "KEYS": self.keys,
            "SLOTS": self.slots,
            "CHANNELS": channels,
            "POLYNOMIAL": self.polynomial,
            "WIDTH": self.width(channels),
            "ORDERED": int(self.ordered),
            "LAZY": int(self.lazy),
        }
        if dtype == torch.float16:
            defined["HALF"] = 1
        return Source(
            "attention",
            tuple(defined.items()),
            tuple((n, kind) for n in sorted({self.keys, self.width(channels)})),
        )


PLANS = {
    40: Plan(warpgroups=3, keys=128, slots=8, polynomial=1, totals=True),
    64: Plan(warpgroups=3, keys=96, slots=8, polynomial=1),
    80: Plan(warpgroups=3, keys=96, slots=6, polynomial=1),
}
"""By channels of a head."""


def plain(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """The same in PyTorch."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


@cache
def available(device: torch.device) -> bool:
    """Whether the device is one that the kernel is written for, and what compiles and launches it is there."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != CAPABILITY:
        return False
    try:
        bindings()
    except Missing:
        return False
    return True


def _readable(t: Tensor) -> bool:
    """Whether the copy engine can walk over it: rows of 16 bytes' multiples that begin at such."""
    whole = 16 // t.element_size()
    return (
        t.stride(-1) == 1
        and t.data_ptr() % 16 == 0
        and all(step > 0 and step % whole == 0 for step in t.stride()[:-1])
    )


def computable(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> bool:
    """Whether the kernel computes this: 16 bits, channels that there is a plan for, rows that may be far apart."""
    channels = q.shape[-1] // heads
    return (
        q.dtype in (torch.float16, torch.bfloat16)
        and q.dtype == k.dtype == v.dtype
        and q.ndim == k.ndim == v.ndim == 3
        and len(q) == len(k)
        and k.shape == v.shape
        and q.shape[-1] == k.shape[-1] == channels * heads
        and channels in PLANS
        and 0 not in q.shape
        and k.shape[1] > 0
        and scale > 0
        and all(_readable(t) for t in (q, k, v))
        and max(q.stride()) < 2**31
        and available(q.device)
        and PLANS[channels].shared(channels) <= shared_memory(q.device)
    )


def fit(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> bool:
    """Whether the kernel computes this, and is quicker: enough queries and keys."""
    if not computable(q, k, v, heads, scale):
        return False
    least = PLANS[q.shape[-1] // heads].least
    return q.shape[1] >= least and k.shape[1] >= least


def fused(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, plan: Plan | None = None) -> Tensor:
    """softmax(scale Q Kᵀ) V of (batch, n, inner) queries and (batch, m, inner) keys and values: (batch, n, inner).

    ``scale`` is positive. Another plan than the width's own is for measurements.
    """
    batch, rows, inner = q.shape
    channels = inner // heads
    plan = PLANS[channels] if plan is None else plan
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    down = math.ceil(rows / (64 * plan.warpgroups))
    tiles = down * heads * batch

    def seen(t: Tensor) -> Tiles:
        shape = batch, t.shape[1], heads, channels
        return Tiles(t, (1, plan.keys, 1, LANES), shape, (t.stride(0), t.stride(1), channels))

    launch(
        plan.source(channels, q.dtype),
        (min(tiles, processors(q.device)), 1, 1),
        128 * (plan.warpgroups + 1),
        (
            seen(k), seen(v), q, y, rows, k.shape[1], heads, q.stride(0), q.stride(1),
            float(scale) * math.log2(math.e), down, tiles,
        ),
        device=q.device,
        shared=plan.shared(channels),
    )  # fmt: skip
    return y
