"""GEGLU in one pass: values and gates are multiplied where they were computed, and are never written to memory.

Tiles come through tensor descriptors (Hopper's bulk copies); by pointers this is no quicker than the library's product
and a gate after it.
"""

# mypy: disable-error-code="no-untyped-def, assignment, arg-type"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel
from calotype.acceleration.kernels.limits import processors, shared_memory
from calotype.acceleration.kernels.pointwise import plain_geglu
from calotype.acceleration.kernels.succession import begin, loaded

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4
    TensorDescriptor = None

ROWS, COLUMNS, DEPTH, STAGES = 128, 128, 64, 4
_BARRIERS = 1024
"""Bytes beside the tiles, with room to spare."""
TURNS = 4
"""Programs for each of the device's processors from which on this is quicker than a product and a gate.

With fewer, too many processors have nothing to do in the last turn. Measured: quicker from 4.8 on, slower at 1.2.
"""


@Kernel
@triton.jit
def gated_columns(
    x,
    w,
    bias,
    y,
    rows,
    half,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    NEXT: tl.constexpr = None,
):
    """value · gelu(gate) of some columns; ``x`` describes (rows, WIDTH), ``w`` (2 half, WIDTH), gates second."""
    row = tl.program_id(0) * ROWS
    column = tl.program_id(1) * COLUMNS
    value = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    begin(NEXT)
    for depth in range(0, WIDTH, DEPTH):
        a = x.load([row, depth])
        v = w.load([column, depth]).T
        g = w.load([half + column, depth]).T
        value = tl.dot(a, v, value)
        gate = tl.dot(a, g, gate)
    r = row + tl.arange(0, ROWS)
    c = column + tl.arange(0, COLUMNS)
    value += tl.load(bias + c).to(tl.float32)[None, :]
    gate += tl.load(bias + half + c).to(tl.float32)[None, :]
    gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    to = y + r.to(tl.int64)[:, None] * half + c[None, :]
    loaded(NEXT)
    tl.store(to, (value * gate).to(y.dtype.element_ty), mask=(r < rows)[:, None])


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in PyTorch."""
    return plain_geglu(F.linear(x, weight, bias))


def available(device: torch.device) -> bool:
    """Whether Triton and the device have what the kernel needs."""
    if TensorDescriptor is None or device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return shared_memory(device) >= STAGES * (ROWS + 2 * COLUMNS) * DEPTH * 2 + _BARRIERS


def fit(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernel computes this, and is quicker: 16 bits, whole tiles, and enough of them for the device."""
    return (
        x.dtype in (torch.float16, torch.bfloat16)
        and weight.dtype == bias.dtype == x.dtype
        and x.shape[-1] % DEPTH == 0
        and len(bias) % (2 * COLUMNS) == 0
        and all(tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 for tensor in (x, weight))
        and available(x.device)
        and _tiles(x, weight) >= TURNS * processors(x.device)
    )


def _tiles(x: Tensor, weight: Tensor) -> int:
    found: int = triton.cdiv(x.numel() // x.shape[-1], ROWS) * (len(weight) // (2 * COLUMNS))
    return found


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x`` (…, width) W · gelu(x V) with W and V the halves of ``weight`` (2 half, width), contiguous: (…, half)."""
    half, width = len(weight) // 2, x.shape[-1]
    rows = x.numel() // width
    y = x.new_empty(*x.shape[:-1], half)
    tiles = TensorDescriptor.from_tensor(x.view(rows, width), [ROWS, DEPTH])
    columns = TensorDescriptor.from_tensor(weight.detach(), [COLUMNS, DEPTH])
    gated_columns[(triton.cdiv(rows, ROWS), triton.cdiv(half, COLUMNS))](
        tiles, columns, bias, y, rows, half, width, ROWS, COLUMNS, DEPTH, num_warps=8, num_stages=STAGES
    )
    return y
