"""Convolutions of 3 x 3 pixels with what is added to them, in CUDA C++ (`cuda/convolved.cu`).

Boxes of pixels are multiplied with filters. It is quicker than cuDNN's where the tiles of a result, boxes by columns
(output channels), fill the device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.acceleration.cuda.available import available as in_cuda
from calotype.acceleration.cuda.program import Source, Tiles, launch
from calotype.acceleration.kernels.limits import processors, shared_memory

SIDE = 3
PIXELS = 128
"""Pixels of a box."""
DEPTH = 64
"""Input channels that are multiplied at a time."""
COLUMNS = (160, 128, 256)
"""Output channels of a tile, in the order in which they are preferred where they take equally long."""
PAIR = 2
"""Programs that have neighbouring boxes and share their filters."""
FILLED = 0.8
"""The part of the device's work that has to be wanted; with less, cuDNN's convolutions are expected to be quicker.

The rest are tiles that the last turn lacks, and pixels of boxes outside the map. Measured on an H200, µs (cuDNN, this):
2 x 320 channels at 64² -> 320, 97 %: 33.8, 23.9; 2 x 960 at 64² -> 320, 97 %: 88.0, 61.7; 2 x 640 at 64² -> 640, 97 %:
105, 83; 16 x 640 at 32² -> 640, 97 %: 208, 164. It is slower where there are few tiles, as for 2 x 1280 at 16².
"""
MEMORY = 227 * 1024
"""Bytes beside a processor that a program may use."""
MOST_STAGES = 8


class Box(NamedTuple):
    """Maps, rows and columns of pixels that are taken together, ``PIXELS`` in all."""

    maps: int
    height: int
    width: int

    def covering(self, n: int, h: int, w: int) -> int:
        """How many cover so many maps of this size."""
        return -(-n // self.maps) * -(-h // self.height) * -(-w // self.width)


class Plan(NamedTuple):
    """How a convolution is divided."""

    columns: int
    pair: int
    split: int
    """Parts of the depth that are computed by programs of their own."""
    box: Box

    @property
    def stages(self) -> int:
        return min(MOST_STAGES, (MEMORY - 2048) // self._stage)

    @property
    def memory(self) -> int:
        """Bytes beside a processor: stages from a multiple of 1024 on, and two barriers for each."""
        return self.stages * (self._stage + 16) + 1024

    @property
    def _stage(self) -> int:
        return (PIXELS + self.columns) * DEPTH * 2

    def tiles(self, n: int, h: int, w: int, o: int) -> int:
        return -(-self.box.covering(n, h, w) // self.pair) * (o // self.columns)

    def source(self, dtype: torch.dtype) -> Source:
        return Source.of(
            "convolved", dtype, (self.columns,), STAGES=self.stages, COLUMNS=self.columns, SIDE=SIDE, PAIR=self.pair,
            SPLIT=self.split,
        )  # fmt: skip


BOXES = tuple(
    Box(PIXELS // (height * width), height, width)
    for width in (128, 64, 32, 16, 8)
    for height in (1, 2, 4, 8, 16)
    if height * width <= PIXELS
)


def plan(n: int, h: int, w: int, c: int, o: int, processors: int) -> Plan | None:
    """How to divide a convolution of (n, c, h, w) to o channels; None where cuDNN's is expected to be quicker."""
    if c % DEPTH or not n * h * w * c:
        return None
    box = min(BOXES, key=lambda box: box.covering(n, h, w))
    able = [Plan(columns, PAIR, 1, box) for columns in COLUMNS if o % columns == 0]
    best = min(able, key=lambda one: time(one, n, h, w, o, processors), default=None)
    if best is None or n * h * w * o < FILLED * time(best, n, h, w, o, processors) * processors * PIXELS:
        return None
    return best


def time(plan: Plan, n: int, h: int, w: int, o: int, processors: int) -> float:
    """How long it takes, in columns that each processor computes of a box, one after another."""
    turns = -(-plan.tiles(n, h, w, o) // (processors // (plan.pair * plan.split)))
    return turns * plan.columns / plan.split


_plan = lru_cache(maxsize=1024)(plan)


def available(device: torch.device) -> bool:
    """Whether the kernel can be used on the device."""
    return in_cuda(device) and shared_memory(device) >= MEMORY


def fit(x: Tensor, weight: Tensor, bias: Tensor | None = None, other: Tensor | None = None) -> bool:
    """Whether the kernel computes this, and is expected to be quicker: 16 bits, channels-last, whole tiles."""
    given = [one for one in (x, weight, bias, other) if one is not None]
    if not (
        x.dtype in (torch.float16, torch.bfloat16)
        and all(one.dtype == x.dtype and one.device == x.device and one.data_ptr() % 16 == 0 for one in given)
        and weight.shape[1:] == (x.shape[1], SIDE, SIDE)
        and all(one.is_contiguous(memory_format=torch.channels_last) for one in given if one is not bias)
        and (bias is None or bias.is_contiguous())
        and available(x.device)
    ):
        return False
    n, c, h, w = x.shape
    if other is not None and other.shape != (n, len(weight), h, w):
        return False
    return _plan(n, h, w, c, len(weight), processors(x.device)) is not None


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, other: Tensor | None = None) -> Tensor:
    """The same in PyTorch."""
    found = F.conv2d(x, weight, bias, padding=SIDE // 2)
    return found if other is None else found + other


def fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    divided: Plan | None = None,
) -> Tensor:
    """Maps ``x`` (n, c, h, w) convolved with ``weight`` (o, c, 3, 3), + ``bias`` (o,) + ``other`` (n, o, h, w).

    The map keeps its size: there are zeros around it. It is divided as :func:`plan` says, unless that is given.
    """
    n, c, h, w = x.shape
    o = len(weight)
    count = processors(x.device)
    p = _plan(n, h, w, c, o, count) if divided is None else divided
    assert p is not None
    y = torch.empty((n, o, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    box, size = p.box, p.pair * p.split
    tiles = p.tiles(n, h, w, o)
    clusters = tiles if p.split > 1 else min(tiles, count // p.pair)
    across, down = -(-w // box.width), -(-h // box.height)
    # of dimensions of one element, a tensor's own strides say nothing
    pixels = Tiles(x, (*box, DEPTH), (n, h, w, c), (h * w * c, w * c, c))
    filters = Tiles(weight, (p.columns // p.pair, DEPTH), (o, SIDE * SIDE * c), (SIDE * SIDE * c,))
    launch(
        p.source(x.dtype),
        (size * clusters, 1, 1),
        384,
        (
            pixels, filters, bias, other, y, n, h, w, c, o, box.height, box.width, across, down, box.covering(n, h, w),
            o // p.columns,
        ),
        device=x.device,
        cluster=size,
        shared=p.memory,
    )  # fmt: skip
    return y


def check(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel computes of little, and what that should be."""
    x, weight, bias, other = (
        torch.linspace(-2, 2, 64 * n, device=device).mul(n).sin().bfloat16()
        for n in (2 * 9 * 17, 9 * 160, 3, 765)
    )
    last = torch.channels_last
    x = x.view(2, 64, 9, 17).contiguous(memory_format=last)
    weight = (weight.view(160, 64, 3, 3) / 8).contiguous(memory_format=last)
    other = other.view(2, 160, 9, 17).contiguous(memory_format=last)
    divided = Plan(160, PAIR, 1, min(BOXES, key=lambda box: box.covering(2, 9, 17)))
    given = x, weight, bias[:160].contiguous(), other
    return fused(*given, divided), plain(*given)
