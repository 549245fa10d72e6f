"""Group normalisation of a channels-last map that is read once: clusters of programs keep it near their processors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd, lcm

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.acceleration.cuda.available import available
from calotype.acceleration.cuda.program import Source, launch
from calotype.acceleration.kernels.limits import processors, shared_memory

VECTOR = 8
"""Channels that a thread reads at once: 16 bytes."""
RUN = 160
"""Bytes of neighbouring channels in a slice, if there are so many and a slice of them fits."""
NARROWEST = 64
"""The same at least: two of memory's sectors."""
CLUSTER = 8
"""Programs of a cluster at most, on any device that has clusters."""
NEAR, MOST = 96 * 1024, 144 * 1024
"""Bytes of a program up to which no more programs are added, and beyond which three launches are quicker."""
THREADS, EVEN = 320, 480
"""Threads of a program, and how many at most so that none is idle: small programs hide each other's waits."""
LITTLE, FEW = 32 * 1024, 160
"""Bytes of a program up to which so few threads are quicker, as more such programs are resident."""
PIXELS = 2
"""Pixels of a thread at least."""
FILLED = 7 / 8
"""Part of the processors that is enough."""
WARP = 32
RESERVED = 1024
"""Bytes that a program needs beside its own shared memory."""

_KINDS = {dtype: Source.of("group_norm", dtype) for dtype in (torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class Plan:
    """How a map is divided: a cluster takes some groups of a sample, each of its programs some of the pixels."""

    groups: int
    """Groups of a cluster's slice."""
    vectors: int
    """Vectors of each pixel in a slice."""
    programs: int
    """Programs of a cluster, at least two: one alone has nobody to send to, and the device refuses the instruction."""
    threads: int
    share: int
    """Pixels of a program."""

    @property
    def rows(self) -> int:
        """Pixels that the threads of a program take at a time."""
        return self.threads // self.vectors

    @property
    def slots(self) -> int:
        """Pixels of a thread at most."""
        return -(-self.share // self.rows)

    @property
    def bytes(self) -> int:
        """What a program keeps: its part of the map, statistics of threads, programs and groups, a barrier."""
        kept = self.slots * self.rows * self.vectors * 16
        return kept + 16 * self.threads + 8 * (self.programs + 1) * self.groups + 8


def slices_of(channels: int, groups: int) -> list[int]:
    """How many groups a slice may have: whole vectors, from a run of ``RUN`` bytes or more down to ``NARROWEST``."""
    width = channels // groups
    if channels % groups or channels % VECTOR or not (width == VECTOR // 2 or width >= VECTOR):
        return []  # of narrower groups a vector meets more than two
    least = VECTOR // gcd(width, VECTOR)
    able = [n for n in range(least, groups + 1, least) if groups % n == 0]
    enough = next((n for n in able if 2 * n * width >= RUN), groups)
    return [n for n in reversed(able) if n <= enough and (2 * n * width >= NARROWEST or n == groups)]


def divided(size: int, channels: int, groups: int, some: int, programs: int, threads: int) -> Plan | None:
    """The plan with ``some`` groups a slice and about so many threads; ``None`` if a pixel has more vectors."""
    vectors = some * (channels // groups) // VECTOR
    if vectors > threads:
        return None
    share = -(-size // programs)
    whole = lcm(vectors, WARP)  # so that no thread is idle
    most = threads // whole * whole or (whole if whole <= EVEN else threads // WARP * WARP)
    needed = -(-share * vectors // (PIXELS * WARP)) * WARP
    return Plan(some, vectors, programs, max(min(most, needed), _covering(vectors)), share)


def _covering(vectors: int) -> int:
    """The fewest threads, in whole warps, that read a pixel at once."""
    return -(-vectors // WARP) * WARP


def plan_of(batch: int, size: int, channels: int, groups: int, processors: int, shared: int) -> Plan | None:
    """The division of a map of ``size`` pixels; ``None`` where three launches are quicker, or no slice of it fits.

    Programs are added to a cluster until there are as many as processors and what each keeps is small.

    Measured on an H200, µs, in three launches and so: 2 x 320 channels at 64² 13.5, 9.7; 2 x 640 at 32² 15.4, 7.7;
    2 x 2560 at 32² 24.6, 13.3 (18.2 with eight programs); 2 x 1280 at 64² 34.0, 23.8; 16 x 640 at 64² 90, 62; 16 x 640
    at 32² 32.5, 16.8 (24.9 with eight); 16 x 1280 at 8² 14.7, 7.2; but 2 x 320 at 128², 165 KiB a program, 28.3, 34.6.
    With few threads 16 x 2560 at 16² takes 20.4 in place of 25.4, and 16 x 1280 at 16² 11.3 in place of 12.4.
    """
    for some in slices_of(channels, groups):
        best = None
        for programs in (2, 4, CLUSTER):
            plan = divided(size, channels, groups, some, programs, THREADS)
            if plan is not None and plan.bytes <= min(MOST, shared) and (best is None or programs <= size):
                best = plan
                if batch * (groups // some) * programs >= FILLED * processors and plan.bytes <= NEAR:
                    break
        if best is not None:
            fewer = divided(size, channels, groups, some, best.programs, FEW)
            return fewer if fewer is not None and best.bytes <= LITTLE else best
    return None


def fitting(needed: int, shared: int) -> int:
    """Programs that have room beside one processor."""
    return (shared + RESERVED) // (needed + RESERVED)


def rounded(needed: int, shared: int) -> int:
    """The most bytes with which as many programs fit, up to eight: few sizes, for each of which a kernel is loaded."""
    count = min(fitting(needed, shared), 8)
    return ((shared + RESERVED) // count - RESERVED) // 128 * 128


@cache
def _plan(batch: int, size: int, channels: int, groups: int, device: torch.device) -> Plan | None:
    return plan_of(batch, size, channels, groups, processors(device), shared_memory(device))


def fit(x: Tensor, groups: int, *others: Tensor, shift_row: int = 0, beside: Tensor | None = None) -> bool:
    """Whether the kernel computes this: 16 bits, channels-last, aligned, and small enough for a cluster's memory.

    ``others`` are the shift, whose rows are ``shift_row`` apart, the offset, the weight and the bias; ``beside`` is a
    map whose channels follow those of ``x``.
    """
    batch, _, height, wide = x.shape
    maps = [x] if beside is None else [x, beside]
    channels = sum(one.shape[1] for one in maps)
    return (
        x.dtype in _KINDS
        and all(other.dtype == x.dtype and other.stride(-1) == 1 for other in others)
        and all(tensor.data_ptr() % 16 == 0 for tensor in (*maps, *others))
        and shift_row % VECTOR == 0
        and all(one.is_contiguous(memory_format=torch.channels_last) for one in maps)
        and all(one.dtype == x.dtype and one.shape[1] % VECTOR == 0 for one in maps)
        and 0 < batch < 2**16
        and height * wide > 0
        and available(x.device)
        and _plan(batch, height * wide, channels, groups, x.device) is not None
    )


def fused(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, shift: Tensor, offset: Tensor,
    shift_row: int, plan: Plan | None = None, beside: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Group normalisation of ``x`` (and ``beside``) + shift + offset, then SiLU, as ``plan`` divides it or as fits."""
    batch, first, height, wide = x.shape
    size, channels = height * wide, first if beside is None else first + beside.shape[1]
    plan = _plan(batch, size, channels, groups, x.device) if plan is None else plan
    assert plan is not None
    y = room(x, beside)
    launch(
        _KINDS[x.dtype],
        (groups // plan.groups * plan.programs, batch, 1),
        plan.threads,
        (
            x, x if beside is None else beside, y, shift, offset, weight, bias, size, first, channels,
            channels // groups, plan.vectors, plan.share, plan.rows, plan.slots, shift_row, int(silu), float(eps),
        ),
        device=x.device,
        cluster=plan.programs,
        shared=rounded(plan.bytes, shared_memory(x.device)),
    )  # fmt: skip
    return y


def room(x: Tensor, beside: Tensor | None) -> Tensor:
    """Memory for a map like the channels-last ``x`` with the channels of ``beside`` after its own."""
    if beside is None:
        return torch.empty_like(x)
    batch, first, height, wide = x.shape
    return x.new_empty(batch, height, wide, first + beside.shape[1]).permute(0, 3, 1, 2)


def check(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel computes of little, and what that should be."""
    x = torch.linspace(-2, 2, 2 * 99 * 320, device=device).mul(7).sin().bfloat16().view(2, 9, 11, 320)
    x = x.permute(0, 3, 1, 2)
    weight, bias, shift, offset = (
        torch.linspace(-1, 1, n * 320, device=device).mul(n).cos().bfloat16() for n in (1, 1, 2, 1)
    )
    found = fused(x, 32, weight, bias, 1e-5, True, shift, offset, 320)
    moved = (x.float() + shift.view(2, 320, 1, 1)) + offset.view(1, 320, 1, 1)
    return found, F.silu(F.group_norm(moved, 32, weight.float(), bias.float(), 1e-5)).to(x.dtype)
