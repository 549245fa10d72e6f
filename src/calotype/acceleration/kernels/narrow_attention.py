"""Attention to many keys of heads so narrow that exponentials take longer than products, in CUDA C++.

As in FlashAttention-3 (https://arxiv.org/abs/2407.08608) the copy engine brings keys and values while warpgroups take
turns at products and exponentials (`cuda/attention.cu`). Heads of 40 channels are not computed as if they were of 64.
In bfloat16, whose range is that of float32, no maximum of the scores is kept on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from calotype.acceleration.cuda.available import available as in_cuda
from calotype.acceleration.cuda.program import Source, Tiles, launch
from calotype.acceleration.kernels import short_attention
from calotype.acceleration.kernels.limits import processors, shared_memory

LANES = 64
"""Channels in a box of the copy engine, whose rows are 128 bytes."""
ROWS = 64
"""Queries of a warpgroup."""
REGISTERS = {2: 232, 3: 160, 4: 112}
"""Of a thread that multiplies, by warpgroups of such; one more, which asks for copies, gives up most of its own."""


@dataclass(frozen=True)
class Plan:
    """How the work of heads of some width is divided."""

    channels: int
    warpgroups: int
    """That multiply, in a program."""
    keys: int
    """That are weighed at a time, a multiple of 16."""
    stages: int
    """Tiles of keys, and of values with them, that are near at a time."""
    polynomial: int
    """Exponentials of eight that are computed as polynomials."""

    @property
    def width(self) -> int:
        """Columns of the product with values: after the channels, one of ones that sums the weights."""
        return self.channels + 8

    @property
    def memory(self) -> int:
        """Bytes beside a processor: stages from a multiple of 1024 on, three barriers for each, and perhaps ones."""
        part = math.ceil(self.channels / LANES) * self.keys * 2 * LANES
        return self.stages * (2 * part + 24) + 1024 + (self.channels % LANES == 0) * 16 * 2 * LANES

    def down(self, rows: int) -> int:
        """Tiles of one head's queries."""
        return math.ceil(rows / (ROWS * self.warpgroups))

    def source(self, dtype: torch.dtype) -> Source:
        return Source.of(
            "attention", dtype, sorted({self.keys, self.width}), CHANNELS=self.channels, WIDTH=self.width,
            WARPGROUPS=self.warpgroups, REGISTERS=REGISTERS[self.warpgroups], KEYS=self.keys, STAGES=self.stages,
            POLYNOMIAL=self.polynomial,
        )  # fmt: skip


PLANS = {
    torch.bfloat16: {
        40: Plan(40, warpgroups=4, keys=64, stages=5, polynomial=1),
        64: Plan(64, warpgroups=3, keys=64, stages=6, polynomial=0),
        80: Plan(80, warpgroups=2, keys=128, stages=3, polynomial=0),
    },
    torch.float16: {
        40: Plan(40, warpgroups=3, keys=128, stages=4, polynomial=1),
        80: Plan(80, warpgroups=2, keys=128, stages=3, polynomial=1),
    },
}
"""By type and channels of a head.

Measured on an H200, µs for batch x heads x queries = keys, cuDNN and these. bfloat16, 40 channels: 16 x 8 x 4096 1148,
813; 2 x 8 x 4096 150, 104; 64: 2 x 10 x 4096 184, 176; 2 x 20 x 1024 33.3, 27.7; 80: 16 x 8 x 1024 111, 92; 2 x 8 x
1024 18.3, 13.2. float16, 40 channels: 16 x 8 x 4096 1148, 962; with 64 cuDNN is quicker.
"""
LEAST = 1024
"""Queries, and keys, from which on it is used; with fewer it was not measured."""


def available(device: torch.device) -> bool:
    """Whether the kernel can be used on the device."""
    most = max(one.memory for plans in PLANS.values() for one in plans.values())
    return in_cuda(device) and shared_memory(device) >= most


def fit(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> bool:
    """Whether the kernel computes this, and is quicker: 16 bits, narrow heads, many queries and keys.

    Their rows may be far apart, as those of one product's chunks are.
    """
    return (
        q.dtype in PLANS
        and all(
            t.dtype == q.dtype and t.device == q.device and t.ndim == 3 and _readable(t) for t in (q, k, v)
        )
        and len(q) == len(k)
        and k.shape == v.shape
        and q.shape[-1] == k.shape[-1]
        and q.shape[-1] in [heads * channels for channels in PLANS[q.dtype]]
        and min(q.shape[1], k.shape[1]) >= LEAST
        and len(q) > 0
        and scale > 0
        and available(q.device)
    )


def _readable(t: Tensor) -> bool:
    """Whether the copy engine can walk over it, and the kernel count its steps: rows begin at multiples of 16 bytes."""
    whole = 16 // t.element_size()
    return (
        t.stride(-1) == 1
        and t.data_ptr() % 16 == 0
        and all(0 < step < 2**31 and step % whole == 0 for step in t.stride()[:-1])
    )


plain = short_attention.plain
"""The same in PyTorch."""


def fused(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, divided: Plan | None = None) -> Tensor:
    """softmax(scale Q Kᵀ) V of (batch, n, inner) queries and (batch, m, inner) keys and values: (batch, n, inner).

    ``scale`` is positive. It is divided as ``PLANS`` say, unless that is given.
    """
    batch, rows, inner = q.shape
    channels, count = inner // heads, processors(q.device)
    p = PLANS[q.dtype][channels] if divided is None else divided
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tiles = p.down(rows) * heads * batch
    seen = [
        Tiles(
            t,
            (1, p.keys, 1, LANES),
            (batch, t.shape[1], heads, channels),
            (t.stride(0), t.stride(1), channels),
        )
        for t in (k, v)
    ]
    launch(
        p.source(q.dtype),
        (min(tiles, count), 1, 1),
        128 * (p.warpgroups + 1),
        (
            *seen, q, k, v, y, rows, k.shape[1], heads, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            float(scale) * math.log2(math.e), p.down(rows), tiles,
        ),
        device=q.device,
        shared=p.memory,
    )  # fmt: skip
    return y


def check(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel computes of little, and what that should be."""
    heads, channels = 2, 80
    x = torch.linspace(-2, 2, 2 * 150 * 3 * heads * channels, device=device).mul(1e5).sin().bfloat16()
    q, k, v = x.view(2, 150, -1).chunk(3, dim=-1)
    given = q[:, :140], k, v, heads, 1.0
    return fused(*given), plain(*given)
