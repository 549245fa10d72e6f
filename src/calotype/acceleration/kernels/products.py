"""Products of one matrix with many, in one launch: each by itself would leave most of the device idle.

What the matrices are read by is a table of where their columns begin, so they stay where they are.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel
from calotype.acceleration.kernels.limits import shared_memory
from calotype.core.transfer import sent

COLUMNS = 128
"""Columns of a result that one program computes."""
DEPTH = 64
"""Elements of a row that a program multiplies at a time."""
_UNIT = 16
"""Bytes that addresses of matrices are multiples of, as PyTorch's are."""


@Kernel
@triton.jit
def columns_of(
    x, w, y, table, rows, WIDTH: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """``x`` (rows, WIDTH) times the transpose of some rows of a matrix, which the table finds from ``w`` on."""
    entry = table + tl.program_id(1) * 4
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
    to = y + tl.load(entry + 1) + row.to(tl.int64)[:, None] * tl.load(entry + 2) + column[None, :]
    tl.store(to, total.to(y.dtype.element_ty), mask=there[:, None] & found[None, :])


def plain(x: Tensor, groups: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """The same in PyTorch."""
    return [[F.linear(x, weight) for weight in group] for group in groups]


def fit(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel can read this matrix for rows such as those of ``x``."""
    return (
        weight.dtype == x.dtype
        and weight.ndim == 2
        and weight.shape[1] == x.shape[-1]
        and weight.shape[1] % DEPTH == 0
        and weight.is_contiguous()
        and weight.data_ptr() % _UNIT == 0
    )


class Table:
    """Matrices (columns, width) in groups, whose products with ``rows`` rows lie side by side; see :func:`fused`.

    Their addresses are kept, not the matrices: whoever has it knows that these are where they were. The results' memory
    is the table's.
    """

    def __init__(self, x: Tensor, groups: Sequence[Sequence[Tensor]]) -> None:
        self.rows, self.first = x.numel() // x.shape[-1], groups[0][0]
        self.widths = [[len(weight) for weight in group] for group in groups]
        unit = _UNIT // x.element_size()
        entries, start = [], 0
        for group in groups:
            whole, at = sum(map(len, group)), 0
            for weight in group:
                of = (weight.data_ptr() - self.first.data_ptr()) // _UNIT
                for column in range(0, len(weight), COLUMNS):
                    left = len(weight) - column
                    entries.append((of + column * weight.shape[1] // unit, start + at + column, whole, left))
                at += len(weight)
            start += self.rows * whole
        self.unit, self.count = unit, len(entries)
        self.entries, self.results = sent(torch.tensor(entries), x.device), x.new_empty(start)


def fused(x: Tensor, table: Table) -> list[list[Tensor]]:
    """The products of ``x`` (…, width), contiguous, with each matrix: (…, columns), views of the table's memory."""
    y = table.results
    few, many = triton.cdiv(table.rows, 64) * 64, triton.cdiv(table.rows, 128) * 128
    rows = 64 if few < many else 128
    stages = shared_memory(x.device) // ((rows + COLUMNS) * DEPTH * x.element_size())
    columns_of[(triton.cdiv(table.rows, rows), table.count)](
        x, table.first, y, table.entries, table.rows, x.shape[-1], table.unit, rows, COLUMNS, DEPTH,
        num_warps=rows // 16, num_stages=max(min(stages, 4), 1),
    )  # fmt: skip
    found, start = [], 0
    for widths in table.widths:
        whole = sum(widths)
        block = y[start : start + table.rows * whole].view(*x.shape[:-1], whole)
        found.append(list(block.split(widths, dim=-1)))
        start += table.rows * whole
    return found
