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
    slots: int
    """Tiles of keys or values that are near at a time."""
    polynomial: int
    """Exponentials of eight that are computed as polynomials."""
    ordered: bool = False
    """Whether warpgroups take turns at products; not with ``ahead``."""
    ahead: int = 0
    """Not 0 where a warpgroup asks for the next scores before it weighs these: its sets of packed weights, 1 or 2."""
    across: bool = False
    """Whether the first scores of the next tile are asked for before this one is written; with ``ahead``."""
    slowness: float = 1.0
    """Time that a program takes for each of its queries, beside the other plans of the width."""

    @property
    def width(self) -> int:
        """Columns of the product with values: after the channels, one of ones that sums the weights."""
        return self.channels + 8

    @property
    def memory(self) -> int:
        """Bytes beside a processor: slots from a multiple of 1024 on, three barriers for each, and perhaps ones."""
        slot = math.ceil(self.channels / LANES) * self.keys * 2 * LANES
        return self.slots * (slot + 24) + 1024 + (self.channels % LANES == 0) * 16 * 2 * LANES

    def down(self, rows: int) -> int:
        """Tiles of one head's queries."""
        return math.ceil(rows / (ROWS * self.warpgroups))

    def time(self, heads: int, rows: int, processors: int) -> float:
        """How long so many heads in all take, in queries that a processor computes one after another."""
        return math.ceil(heads * self.down(rows) / processors) * ROWS * self.warpgroups * self.slowness

    def source(self, dtype: torch.dtype) -> Source:
        return Source.of(
            "attention", dtype, sorted({self.keys, self.width}), CHANNELS=self.channels, WIDTH=self.width,
            WARPGROUPS=self.warpgroups, REGISTERS=REGISTERS[self.warpgroups], KEYS=self.keys, SLOTS=self.slots,
            POLYNOMIAL=self.polynomial, ORDERED=int(self.ordered), AHEAD=self.ahead,
            ACROSS=int(self.across),
        )  # fmt: skip


PLANS = {
    40: (
        Plan(40, warpgroups=3, keys=128, slots=8, polynomial=1),
        Plan(40, warpgroups=4, keys=64, slots=16, polynomial=2, slowness=1.085),
    ),
    80: (Plan(80, warpgroups=2, keys=128, slots=6, polynomial=1, ordered=True),),
}
"""By channels of a head. Four warpgroups are slower, but their larger tiles can fill the last turn better.

Measured on an H200, µs for batch x heads x queries = keys. 40 channels (cuDNN; three warpgroups; four): 16 x 8 x 4096:
1187, 962, 1061; 2 x 8 x 4096: 152.4, 145.4, 136.9. 80 channels (cuDNN; two): 16 x 8 x 1024: 111.2, 105.9; 2 x 8 x 1024:
18.7, 16.2. Of 64 channels cuDNN is quicker: 2 x 10 x 4096: 183.7, 196 at best; 2 x 20 x 1024: 33.6, 33.9.
"""
LEAST = 1024
"""Queries, and keys, from which on it is used; with fewer it was not measured."""


def plan(heads: int, rows: int, channels: int, processors: int) -> Plan:
    """The quickest way for ``heads`` heads in all with so many queries each."""
    return min(PLANS[channels], key=lambda one: one.time(heads, rows, processors))


def available(device: torch.device) -> bool:
    """Whether the kernel can be used on the device."""
    most = max(one.memory for plans in PLANS.values() for one in plans)
    return in_cuda(device) and shared_memory(device) >= most


def fit(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> bool:
    """Whether the kernel computes this, and is quicker: 16 bits, narrow heads, many queries and keys.

    Their rows may be far apart, as those of one product's chunks are.
    """
    return (
        q.dtype in (torch.float16, torch.bfloat16)
        and all(
            t.dtype == q.dtype and t.device == q.device and t.ndim == 3 and _readable(t) for t in (q, k, v)
        )
        and len(q) == len(k)
        and k.shape == v.shape
        and q.shape[-1] == k.shape[-1]
        and q.shape[-1] in [heads * channels for channels in PLANS]
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

    ``scale`` is positive. It is divided as :func:`plan` says, unless that is given.
    """
    batch, rows, inner = q.shape
    channels, count = inner // heads, processors(q.device)
    p = plan(batch * heads, rows, channels, count) if divided is None else divided
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
