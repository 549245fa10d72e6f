"""Products of rows with a matrix in CUDA C++ (`cuda/multiplied.cu`), with what follows them in a block.

What is added to a product is added where it is computed. The layer norm of the sum comes from the same launch: programs
that have parts of the same rows tell each other what they found of these. So they must all run at the same time, which
cooperative launches see to.
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
MOST_PARTS = 16
"""Tiles of a row at most whose norm is wanted."""
BLOCK, MOST_BLOCKS = 64, 2**16
"""Rows that are waited for together, and how many such blocks at most have a count."""


class Norm(NamedTuple):
    """A layer norm, with weights."""

    weight: Tensor
    bias: Tensor
    eps: float


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
    norm: Norm | None = None,
) -> bool:
    """Whether the kernel computes this, and is expected to be quicker: 16 bits, contiguous, whole tiles."""
    given = [one for one in (x, weight, bias, other, beside) if one is not None]
    given += [] if norm is None else [norm.weight, norm.bias]
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
        and (norm is None or (out // COLUMNS <= MOST_PARTS and rows <= BLOCK * MOST_BLOCKS // PAIR))
        and (depth <= DEEPEST or any(one is not None for one in (other, beside, norm)))
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


def plain_normed(
    x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, norm: Norm
) -> tuple[Tensor, Tensor]:
    """The same in PyTorch."""
    y = plain(x, weight, bias, other)
    return y, F.layer_norm(y, y.shape[-1:], norm.weight, norm.bias, norm.eps)


def fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    beside: Tensor | None = None,
) -> Tensor:
    """[``x``, ``beside``] (…, depth) times ``weight`` (out, depth) transposed, + ``bias`` + ``other``: (…, out)."""
    y = x.new_empty(*x.shape[:-1], len(weight))
    _launched(y, x, weight, bias, other, beside)
    return y


def normed(
    x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, norm: Norm
) -> tuple[Tensor, Tensor]:
    """``x`` (…, depth) times ``weight`` (out, depth) transposed + ``bias`` + ``other`` (…, out), and that normalised."""
    y = x.new_empty(*x.shape[:-1], len(weight))
    tokens = torch.empty_like(y)
    _launched(y, x, weight, bias, other, None, norm, tokens)
    return y, tokens


def _launched(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, beside: Tensor | None,
    norm: Norm | None = None, tokens: Tensor | None = None, cooperative: bool = True,
) -> None:  # fmt: skip
    first, (out, depth) = x.shape[-1], weight.shape
    rows = x.numel() // first
    left, result = Tiles(x.view(rows, first), (ROWS, DEPTH)), Tiles(y.view(rows, out), (ROWS // 2, BOX))
    down, across = -(-rows // (PAIR * ROWS)), out // COLUMNS
    pairs = min(processors(x.device) // PAIR, down * across)
    normed: tuple[Tensor | None, ...] = (None,) * 5
    if norm is not None:
        pairs -= pairs % across  # those that have parts of the same rows compute them in the same turn
        parts = torch.empty(down * PAIR * ROWS, across, 2, dtype=torch.float32, device=x.device)
        normed = tokens, norm.weight, norm.bias, parts, counts(x.device)
    launch(
        Source.of("multiplied", x.dtype, (COLUMNS,), STAGES=STAGES, COLUMNS=COLUMNS),
        (PAIR * pairs, 1, 1),
        384,
        (
            left,
            left if beside is None else Tiles(beside.view(rows, depth - first), (ROWS, DEPTH)),
            Tiles(weight, (COLUMNS // PAIR, DEPTH)),
            result if other is None else Tiles(other.view(rows, out), (ROWS, BOX)),
            result, int(other is not None), bias, *normed, 0.0 if norm is None else float(norm.eps), rows, out, depth,
            first, down, across,
        ),
        device=x.device,
        cluster=PAIR,
        shared=MEMORY,
        cooperative=norm is not None and cooperative,
    )  # fmt: skip


_COUNTS: dict[tuple[torch.device, int], Tensor] = {}


def counts(device: torch.device) -> Tensor:
    """Zeros that programs count in and leave as zeros: a stream's, or those of graphs, which are replayed in turns."""
    captured = torch.cuda.is_current_stream_capturing()
    key = device, 0 if captured else torch.cuda.current_stream(device).cuda_stream + 1
    if key not in _COUNTS:
        assert not captured, "what graphs count in is made before the first is captured"
        for one in (key, (device, 0)):
            _COUNTS.setdefault(one, torch.zeros(MOST_BLOCKS, dtype=torch.int32, device=device))
    return _COUNTS[key]


def check(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel computes of little, and what that should be."""
    rows, out, depth = 200, 2 * COLUMNS, 3 * DEPTH
    x, weight, other, bias = (
        torch.linspace(-2, 2, n, device=device).mul(n).sin().bfloat16()
        for n in (rows * depth, out * depth, rows * out, out)
    )
    given = (
        x.view(rows, depth),
        weight.view(out, depth) / 8,
        bias,
        other.view(rows, out),
        Norm(bias, bias, 1e-5),
    )
    return torch.cat(normed(*given)), torch.cat(plain_normed(*given))
