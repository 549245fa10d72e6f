"""Attention to few keys, a prompt's: a program holds all of them, so there is nothing to walk over.

Where Hopper's instructions are and rows begin at multiples of 16 bytes, heads that Triton would pad are computed in
CUDA C++ (`cuda/short_attention.cu`), whose programs read keys and values once for as many queries as the device's
processors leave them. Others are computed in Triton.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel
from calotype.acceleration.cuda.available import available
from calotype.acceleration.cuda.program import Source, launch
from calotype.acceleration.kernels.limits import can_wait, processors, shared_memory

KEYS = 128
"""Keys that a program holds at most; with more PyTorch's own way is as quick."""
ROWS = 64
"""Queries of one head that a program in Triton reads."""
VECTOR, TILE, WARP = 8, 16, 32
"""In CUDA C++: numbers of 16 bytes, queries or keys of a product, and threads that compute it."""
CHANNELS = 160
"""Of a head, at most."""
COPYING = 8
"""Warps of a program at least, so that keys and values come quickly, whether or not each has queries."""


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


@dataclass(frozen=True)
class Plan:
    """How one head's queries are divided, in CUDA C++."""

    channels: int
    keys: int
    """As they are held, a multiple of 16."""
    programs: int
    tiles: int
    """Of 16 queries, of a program."""
    warps: int
    """Of a program; they take turns at its tiles."""

    @property
    def memory(self) -> int:
        """Bytes beside a processor: keys and values, and two tiles of each warp."""
        return _memory(self.channels, self.keys, self.warps)

    def source(self, dtype: torch.dtype) -> Source:
        most = most_warps(self.channels, self.keys)
        return Source.of("short_attention", dtype, CHANNELS=self.channels, KEYS=self.keys, WARPS=most)


def _memory(channels: int, keys: int, warps: int) -> int:
    # each eight channels, 16 bytes, have a column, which is one longer than the keys or queries it has
    return channels // VECTOR * 2 * VECTOR * 2 * (keys + 1 + warps * (TILE + 1))


def most_warps(channels: int, keys: int) -> int:
    """That a processor's registers and the memory beside it, 227 KiB, have room for."""
    warps = 16 if channels > 80 or keys > 80 else 20 if channels > 64 else 24
    while _memory(channels, keys, warps) > 227 * 2**10:
        warps -= 1
    return warps


@cache
def divided(rows: int, keys: int, channels: int, heads: int, count: int) -> Plan:
    """How ``rows`` queries of each of so many heads, all entries of a batch together, go to ``count`` processors.

    The fullest processor is to have the least to read and write. A program reads all keys and values: for each 16 of
    them as many bytes as the queries and results of a tile.
    """
    keys = TILE * math.ceil(keys / TILE)
    tiles = math.ceil(rows / TILE)

    def turns(programs: int) -> int:
        return math.ceil(heads * programs / count)

    def cost(programs: int) -> int:
        return turns(programs) * (math.ceil(tiles / programs) + keys // TILE)

    each = math.ceil(tiles / min(range(1, min(tiles, 2 * count) + 1), key=cost))
    programs = math.ceil(tiles / each)
    # where a processor has several programs, two or three are there at a time: one computes while another waits
    most = most_warps(channels, keys) // min(turns(programs), 3)
    warps = math.ceil(each / math.ceil(each / most))
    return Plan(channels, keys, programs, each, max(warps, min(COPYING, most)))


def fused(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """Attention of queries (batch, n, inner) to keys and values (batch, at most KEYS, inner): (batch, n, inner)."""
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    own = _is_quicker(q.shape[-1] // heads) and _is_in_cuda(q, k, v, heads, scale)
    (_in_cuda if own else _in_triton)(q, k, v, y, heads, scale)
    return y


def check(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel in CUDA C++ computes of little, and what that should be."""
    heads, channels = 2, 40
    x = torch.linspace(-2, 2, 2 * 77 * 3 * heads * channels, device=device).mul(1e5).sin().bfloat16()
    q, k, v = x.view(2, 77, -1).chunk(3, dim=-1)
    y = torch.empty(q.shape, dtype=q.dtype, device=device)
    _in_cuda(q, k, v, y, heads, 1.0)
    return y, plain(q, k, v, heads, 1.0)


def _is_quicker(channels: int) -> bool:
    """Whether heads so wide are quicker in CUDA C++: Triton's tiles are powers of two.

    Measured on an H200, µs for batch x heads x queries x channels, Triton and CUDA C++: 16 x 8 x 4096 x 40 76, 42; 16 x
    8 x 1024 x 80 49, 24; 16 x 8 x 256 x 160 28, 15; 2 x 8 x 4096 x 40 11.3, 8.9; 2 x 8 x 1024 x 80 6.3, 6.3; but 2 x 20
    x 1024 x 64 8.7, 9.3; 2 x 10 x 4096 x 64 13.2, 14.6.
    """
    return bool(channels & (channels - 1))


def _is_in_cuda(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> bool:
    channels = q.shape[-1] // heads
    return (
        all(t.dtype in (torch.float16, torch.bfloat16) and _readable(t) for t in (q, k, v))
        and channels % VECTOR == 0
        and TILE <= channels <= CHANNELS
        and 0 < k.shape[1] <= KEYS
        and q.numel() > 0
        and q[0].numel() < 2**31
        and len(q) < 2**16
        and scale > 0
        and available(q.device)
    )


def _readable(t: Tensor) -> bool:
    """Whether rows begin at multiples of 16 bytes, at distances and places that an ``int`` counts."""
    return (
        t.stride(-1) == 1
        and t.data_ptr() % 16 == 0
        and all(0 <= step < 2**31 and step % VECTOR == 0 for step in t.stride()[:-1])
        and t.shape[1] * t.stride(1) + t.shape[2] < 2**31
    )


def _in_cuda(q: Tensor, k: Tensor, v: Tensor, y: Tensor, heads: int, scale: float) -> None:
    batch, rows, inner = q.shape
    p = divided(rows, k.shape[1], inner // heads, batch * heads, processors(q.device))
    launch(
        p.source(q.dtype),
        (heads, p.programs, batch),
        WARP * p.warps,
        (
            q, k, v, y, rows, k.shape[1], p.tiles, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            float(scale) * math.log2(math.e),
        ),
        device=q.device,
        shared=p.memory,
    )  # fmt: skip


def _in_triton(q: Tensor, k: Tensor, v: Tensor, y: Tensor, heads: int, scale: float) -> None:
    batch, rows, inner = q.shape
    lanes, places = _sizes(k, heads)
    waits = can_wait(q.device)
    attended[(triton.cdiv(rows, ROWS), heads, batch)](
        q, k, v, y, rows, k.shape[1], q.stride(0), q.stride(1), k.stride(0), k.stride(1), scale, inner // heads,
        lanes, places, ROWS, waits, num_warps=4, **({"launch_pdl": True} if waits else {}),
    )  # fmt: skip
