"""Products of rows with a matrix in CUDA C++ (`cuda/multiplied.cu`), with what is added to them."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.acceleration.cuda.available import available as in_cuda
from calotype.acceleration.cuda.program import Source, Tiles, launch
from calotype.acceleration.kernels.limits import processors, shared_memory

ROWS, COLUMNS = 128, 160
"""Of a program's tile: 320, 640 and 1280 channels are multiples of the latter."""
BOX = 32
"""Columns of the result that the copy engine brings or takes at a time."""
DEPTH = 64
"""Elements of a row that are multiplied at a time."""
PAIR = 2
"""Programs that have neighbouring rows and share the matrix's."""
STAGES = 5
MEMORY = STAGES * ((ROWS + COLUMNS) * DEPTH * 2 + 16) + ROWS * COLUMNS * 2 + 16 + 1024
"""Bytes of a program: stages from a multiple of 1024 on, a tile of the result, barriers."""
FILLED = 0.8
"""The part of the device's work in all turns that has to be wanted."""
DEEPEST = 1280
"""Elements of a row up to which it is quicker even where nothing is added: the library's is better at deep products."""


def divisible(rows: int, out: int, depth: int, processors: int) -> bool:
    """Whether the product of so many rows with a matrix (out, depth) is whole tiles that fill the device's turns."""
    if depth % DEPTH or depth < 2 * DEPTH or out % COLUMNS or not rows:
        return False
    pairs = max(processors // PAIR, 1)
    turns = -(-(-(-rows // (PAIR * ROWS)) * (out // COLUMNS)) // pairs)
    return rows / (PAIR * ROWS) * (out / COLUMNS) >= FILLED * turns * pairs


_divisible = lru_cache(maxsize=1024)(divisible)


def available(device: torch.device) -> bool:
    """Whether the kernel can be used on the device."""
    return in_cuda(device) and shared_memory(device) >= MEMORY


def fit(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    beside: Tensor | None = None,
) -> bool:
    """Whether the kernel computes this, and is expected to be quicker: 16 bits, contiguous, whole tiles."""
    given = [one for one in (x, weight, bias, other, beside) if one is not None]
    if not (
        x.dtype in (torch.float16, torch.bfloat16)
        and all(one.dtype == x.dtype and one.device == x.device and one.data_ptr() % 16 == 0 for one in given)
        and all(one.is_contiguous() for one in given)
        and weight.ndim == 2
        and x.shape[-1] % DEPTH == 0
        and available(x.device)
    ):
        return False
    (out, depth), rows = weight.shape, x.numel() // x.shape[-1]
    return (
        x.shape[-1] + (0 if beside is None else beside.shape[-1]) == depth
        and (other is None or other.shape == (*x.shape[:-1], out))
        and (depth <= DEEPEST or other is not None or beside is not None)
        and _divisible(rows, out, depth, processors(x.device))
    )


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    beside: Tensor | None = None,
) -> Tensor:
    """The same in PyTorch."""
    y = F.linear(x if beside is None else torch.cat([x, beside], dim=-1), weight, bias)
    return y if other is None else y + other


def fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    beside: Tensor | None = None,
) -> Tensor:
    """[``x``, ``beside``] (…, depth) times ``weight`` (out, depth) transposed, + ``bias`` + ``other``: (…, out)."""
    first, (out, depth) = x.shape[-1], weight.shape
    rows = x.numel() // first
    y = x.new_empty(*x.shape[:-1], out)
    left, result = Tiles(x.view(rows, first), (ROWS, DEPTH)), Tiles(y.view(rows, out), (ROWS // 2, BOX))
    down, across = -(-rows // (PAIR * ROWS)), out // COLUMNS
    launch(
        Source.of("multiplied", x.dtype, (COLUMNS,), STAGES=STAGES, COLUMNS=COLUMNS),
        (PAIR * min(processors(x.device) // PAIR, down * across), 1, 1),
        384,
        (
            left,
            left if beside is None else Tiles(beside.view(rows, depth - first), (ROWS, DEPTH)),
            Tiles(weight, (COLUMNS // PAIR, DEPTH)),
            result if other is None else Tiles(other.view(rows, out), (ROWS, BOX)),
            result, int(other is not None), bias, depth, first, down, across,
        ),
        device=x.device,
        cluster=PAIR,
        shared=MEMORY,
    )  # fmt: skip
    return y


def check(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel computes of little, and what that should be."""
    rows, out, depth = 200, 2 * COLUMNS, 3 * DEPTH
    x, weight, other, bias = (
        torch.linspace(-2, 2, n, device=device).mul(n).sin().bfloat16()
        for n in (rows * depth, out * depth, rows * out, out)
    )
    given = x.view(rows, depth), weight.view(out, depth) / 8, bias, other.view(rows, out)
    return fused(*given), plain(*given)
