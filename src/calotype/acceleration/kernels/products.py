"""Products of one matrix with many, in one launch: each by itself would leave most of the device idle.

What the matrices are read by is a table of where their columns begin, so they stay where they are.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel
from calotype.acceleration.kernels.limits import shared_memory
from calotype.core.transfer import sent


@dataclass(frozen=True)
class Tile:
    """The part of a result that one program computes, by so many warps, with at most so many stages of its loop."""

    rows: int
    columns: int
    warps: int
    stages: int


FEW = Tile(16, 32, 2, 6)
"""For at most 16 rows, which take as long as reading the matrices: many narrow programs, about as many a processor.

Stable Diffusion's 20160 columns for a time are 630 programs, which all fit at once.
"""
TILES = (Tile(128, 128, 8, 4), Tile(64, 128, 4, 4))
"""For more rows, the first of those that leave the fewest of theirs empty."""
DEPTH = 64
"""Elements of a row that a program multiplies at a time."""
_UNIT = 16
"""Bytes that addresses of matrices are multiples of, as PyTorch's are."""


@Kernel
@triton.jit
def columns_of(
    x, w, y, table, rows, WIDTH: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """``x`` (rows, WIDTH) times the transpose of some rows of a matrix, which the table finds from ``w`` on.

    With ``BIASED`` the table says where biases are too, 0 for a matrix that has none.
    """
    entry = table + tl.program_id(1) * 5
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    there = row < rows
    found = column < tl.load(entry + 3)
    left = x + row.to(tl.int64)[:, None] * WIDTH + depth[None, :]
    right = w + tl.load(entry) * UNIT + column[None, :] * WIDTH + depth[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for _ in range(0, WIDTH, DEPTH):
        a = tl.load(left, mask=there[:, None], other=0.0)
        b = tl.load(right, mask=found[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        left += DEPTH
        right += DEPTH
    if BIASED:
        bias = tl.load(entry + 4)
        there_too = found & (bias != 0)
        total += tl.load(w + bias * UNIT + column, mask=there_too, other=0.0).to(tl.float32)[None, :]
    to = y + tl.load(entry + 1) + row.to(tl.int64)[:, None] * tl.load(entry + 2) + column[None, :]
    tl.store(to, total.to(y.dtype.element_ty), mask=there[:, None] & found[None, :])


Biases = Sequence[Sequence[Tensor | None]]
"""What is added to the products of each matrix in each group."""


def plain(x: Tensor, groups: Sequence[Sequence[Tensor]], biases: Biases | None = None) -> list[list[Tensor]]:
    """The same in PyTorch."""
    return [
        [F.linear(x, weight, bias) for weight, bias in zip(group, added, strict=True)]
        for group, added in zip(groups, biases or _without(groups), strict=True)
    ]


def _without(groups: Sequence[Sequence[Tensor]]) -> Biases:
    return [[None] * len(group) for group in groups]


def fit(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the kernel can read this matrix, and what is added, for rows such as those of ``x``."""
    return (
        weight.ndim == 2
        and weight.shape[1] == x.shape[-1]
        and weight.shape[1] % DEPTH == 0
        and all(
            tensor is None
            or (tensor.dtype == x.dtype and tensor.is_contiguous() and tensor.data_ptr() % _UNIT == 0)
            for tensor in (weight, bias)
        )
    )


def tile_of(rows: int) -> Tile:
    """How the products of so many rows are divided."""
    if rows <= FEW.rows:
        return FEW
    return min(TILES, key=lambda tile: triton.cdiv(rows, tile.rows) * tile.rows)


class Table:
    """Matrices (columns, width) in groups, whose products with ``rows`` rows lie side by side; see :func:`fused`.

    ``biases`` are added to them. Addresses are kept, not the matrices: whoever has it knows that these are where they
    were. The results' memory is the table's; each group begins there at a multiple of 16 bytes.
    """

    def __init__(self, x: Tensor, groups: Sequence[Sequence[Tensor]], biases: Biases | None = None) -> None:
        self.rows, self.first = x.numel() // x.shape[-1], groups[0][0]
        self.tile = tile_of(self.rows)
        self.widths = [[len(weight) for weight in group] for group in groups]
        self.starts: list[int] = []
        self.biased = biases is not None
        self.unit = _UNIT // x.element_size()
        entries, start = [], 0
        for group, added in zip(groups, biases or _without(groups), strict=True):
            whole, at = sum(map(len, group)), 0
            self.starts.append(start)
            for weight, bias in zip(group, added, strict=True):
                of, plus = self._from_first(weight), 0 if bias is None else self._from_first(bias)
                for column in range(0, len(weight), self.tile.columns):
                    left, to = len(weight) - column, start + at + column
                    its = 0 if bias is None else plus + column // self.unit
                    entries.append((of + column * weight.shape[1] // self.unit, to, whole, left, its))
                at += len(weight)
            start += triton.cdiv(self.rows * whole, self.unit) * self.unit
        self.count = len(entries)
        self.entries, self.results = sent(torch.tensor(entries), x.device), x.new_empty(start)

    def _from_first(self, tensor: Tensor) -> int:
        return (tensor.data_ptr() - self.first.data_ptr()) // _UNIT


def fused(x: Tensor, table: Table) -> list[list[Tensor]]:
    """The products of ``x`` (…, width), contiguous, with each matrix: (…, columns), views of the table's memory."""
    y, tile = table.results, table.tile
    stages = shared_memory(x.device) // ((tile.rows + tile.columns) * DEPTH * x.element_size())
    columns_of[(triton.cdiv(table.rows, tile.rows), table.count)](
        x, table.first, y, table.entries, table.rows, x.shape[-1], table.unit, tile.rows, tile.columns, DEPTH,
        table.biased, num_warps=tile.warps, num_stages=max(min(stages, tile.stages), 1),
    )  # fmt: skip
    found = []
    for start, widths in zip(table.starts, table.widths, strict=True):
        whole = sum(widths)
        block = y[start : start + table.rows * whole].view(*x.shape[:-1], whole)
        found.append(list(block.split(widths, dim=-1)))
    return found
