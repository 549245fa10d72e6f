"""Group normalisation of a channels-last map that is read once: clusters of programs keep it near their processors."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from math import gcd, lcm

import torch
from torch import Tensor

from calotype.acceleration.cuda.program import Source, bindings, launch, loaded
from calotype.acceleration.kernels.limits import processors, shared_memory

logger = logging.getLogger(__name__)

VECTOR = 8
"""Channels that a thread reads at once: 16 bytes."""
RUN = 64
"""Bytes of neighbouring channels in a slice at least, if there are so many: two of memory's sectors."""
CLUSTER = 8
"""Programs of a cluster at most, on any device that has clusters."""
ALONE, TOGETHER = 640, 320
"""Threads of a program that has a processor for itself, or shares one: five warps for each of its four schedulers."""
WARP = 32
FILLED = 7 / 8
"""Part of the processors that is enough: a cluster of eight is within one of the device's parts of 16 or 18."""
RESERVED = 1024
"""Bytes that a program needs beside its own shared memory."""

_KINDS = {torch.bfloat16: Source("group_norm"), torch.float16: Source("group_norm", (("HALF", 1),))}


@dataclass(frozen=True)
class Plan:
    """How a map is divided: a cluster takes some groups of a sample, each of its programs some of the pixels."""

    groups: int
    """Groups of a cluster's slice."""
    vectors: int
    """Vectors of each pixel in a slice."""
    programs: int
    """Programs of a cluster."""
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


def slice_of(channels: int, groups: int) -> int | None:
    """The fewest groups that are whole vectors and a run of ``RUN`` bytes; ``None`` if there are none.

    Narrow slices make many clusters of few programs, which have less to tell each other.
    """
    width = channels // groups
    if channels % groups or channels % VECTOR or not (width == VECTOR // 2 or width >= VECTOR):
        return None  # of narrower groups a vector meets more than two
    least = VECTOR // gcd(width, VECTOR)
    fitting = [n for n in range(least, groups + 1, least) if groups % n == 0]
    return next((n for n in fitting if 2 * n * width >= RUN), fitting[-1] if fitting else None)


def divided(size: int, channels: int, groups: int, some: int, programs: int, threads: int) -> Plan | None:
    """The plan with ``some`` groups a slice and at most ``threads`` threads; ``None`` if a pixel has more vectors."""
    vectors = some * (channels // groups) // VECTOR
    if vectors > threads:
        return None
    share = -(-size // programs)
    whole = lcm(vectors, WARP)  # so that no thread is idle
    unit = whole if whole <= threads else WARP
    needed = -(-share * vectors // unit) * unit
    return Plan(some, vectors, programs, max(min(threads // unit * unit, needed), _covering(vectors)), share)


def _covering(vectors: int) -> int:
    """The fewest threads, in whole warps, that read a pixel at once."""
    return -(-vectors // WARP) * WARP


def plan_of(batch: int, size: int, channels: int, groups: int, processors: int, shared: int) -> Plan | None:
    """The division of a map of ``size`` pixels for a device; ``None`` if a slice is too big for a cluster's memory.

    Programs are added to a cluster until the processors have work and two programs fit on one, so that one reads while
    the other computes; beyond that they would only wait for each other.
    """
    some = slice_of(channels, groups)
    if some is None:
        return None
    best = None
    programs = 1
    while programs <= CLUSTER and (programs == 1 or programs <= size):
        count = batch * (groups // some) * programs
        plan = divided(size, channels, groups, some, programs, TOGETHER)
        shares = plan is not None and count > processors and fitting(plan.bytes, shared) > 1
        if not shares:
            plan = divided(size, channels, groups, some, programs, ALONE)
        if plan is not None and plan.bytes <= shared:
            best = plan
            if count >= FILLED * processors and (shares or count <= processors):
                break
        programs *= 2
    return best


def fitting(needed: int, shared: int) -> int:
    """Programs that have room beside one processor."""
    return (shared + RESERVED) // (needed + RESERVED)


def rounded(needed: int, shared: int) -> int:
    """The most bytes with which as many programs fit, up to eight: few sizes, for each of which a kernel is loaded."""
    count = min(fitting(needed, shared), 8)
    return ((shared + RESERVED) // count - RESERVED) // 128 * 128


@cache
def available(device: torch.device) -> bool:
    """Whether the device has clusters, and what compiles for it and launches is installed and works."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    try:
        bindings()
        for source in _KINDS.values():
            loaded(source, device, rounded(0, shared_memory(device)))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning(
            "Group norms are computed in three launches, without clusters: %s.", reason.rstrip(".")
        )
        return False
    return True


@cache
def _plan(batch: int, size: int, channels: int, groups: int, device: torch.device) -> Plan | None:
    return plan_of(batch, size, channels, groups, processors(device), shared_memory(device))


def fit(x: Tensor, groups: int, *others: Tensor, shift_row: int = 0) -> bool:
    """Whether the kernel computes this: 16 bits, channels-last, aligned, and small enough for a cluster's memory.

    ``others`` are the shift, whose rows are ``shift_row`` apart, the offset, the weight and the bias.
    """
    batch, channels, height, wide = x.shape
    return (
        x.dtype in _KINDS
        and all(other.dtype == x.dtype and other.stride(-1) == 1 for other in others)
        and all(tensor.data_ptr() % 16 == 0 for tensor in (x, *others))
        and shift_row % VECTOR == 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and 0 < batch < 2**16
        and height * wide > 0
        and available(x.device)
        and _plan(batch, height * wide, channels, groups, x.device) is not None
    )


def fused(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, shift: Tensor, offset: Tensor,
    shift_row: int, plan: Plan | None = None,
) -> Tensor:  # fmt: skip
    """Group normalisation of ``x`` + shift + offset, then SiLU, as ``plan`` divides it or as fits the device."""
    batch, channels, height, wide = x.shape
    size = height * wide
    plan = _plan(batch, size, channels, groups, x.device) if plan is None else plan
    assert plan is not None
    y = torch.empty_like(x)
    launch(
        _KINDS[x.dtype],
        (groups // plan.groups * plan.programs, batch, 1),
        plan.threads,
        (
            x, y, shift, offset, weight, bias, size, channels, channels // groups, plan.vectors, plan.share, plan.rows,
            plan.slots, shift_row, int(silu), float(eps),
        ),
        device=x.device,
        cluster=plan.programs,
        shared=rounded(plan.bytes, shared_memory(x.device)),
    )  # fmt: skip
    return y
