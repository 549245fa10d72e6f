"""GEGLU in one pass: values and gates are multiplied where they were computed, and are never written to memory.

Tiles come by Hopper's bulk copies, in Triton through tensor descriptors; by pointers this is no quicker than the
library's product and a gate after it. In CUDA C++ (`cuda/gated.cu`) two programs share what they copy, and the next
tile is copied while the gates of one are computed.
"""

# mypy: disable-error-code="no-untyped-def, assignment, arg-type"

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel
from calotype.acceleration.cuda.available import available as in_cuda
from calotype.acceleration.cuda.program import Source, Tiles, launch
from calotype.acceleration.kernels.limits import processors, shared_memory
from calotype.acceleration.kernels.pointwise import plain_geglu

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4
    TensorDescriptor = None

ROWS, COLUMNS, DEPTH, STAGES = 128, 128, 64, 4
_BARRIERS = 1024
"""Bytes beside the tiles, with room to spare."""
TURNS = 4
"""Programs for each of the device's processors from which on Triton's is quicker than a product and a gate.

With fewer, too many processors have nothing to do in the last turn. Measured: quicker from 4.8 on, slower at 1.2.
"""
PAIR, PAIRED_TURNS = 2, 2
"""Programs that share what they copy, and tiles for each pair of processors from which on those are quicker.

Measured on an H200, µs for rows x width -> half (product and gate; Triton; pairs): 2048 x 1280 -> 5120, 4.8 turns:
104, 93.4, 80.1; 8192 x 640 -> 2560, 9.7: 137, 118, 91.7; 2048 x 640 -> 2560, 2.4: 32, 37.6, 31.1; but 512 x 1280 ->
5120, 1.2: 31, 37.1, 33.6.
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
):
    """value · gelu(gate) of some columns; ``x`` describes (rows, WIDTH), ``w`` (2 half, WIDTH), gates second."""
    row = tl.program_id(0) * ROWS
    column = tl.program_id(1) * COLUMNS
    value = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
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
    tl.store(to, (value * gate).to(y.dtype.element_ty), mask=(r < rows)[:, None])


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in PyTorch."""
    return plain_geglu(F.linear(x, weight, bias))


def check(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel in CUDA C++ computes of little, and what that should be."""
    x, weight = (torch.linspace(-2, 2, n * DEPTH, device=device).sin().view(n, DEPTH) / 4 for n in (300, 256))
    given = tuple(one.bfloat16() for one in (x, weight, weight[:, 0].contiguous()))
    return paired(*given), plain(*given)


def available(device: torch.device) -> bool:
    """Whether one of the kernels can be used on the device."""
    return _is_in_cuda(device) or _is_in_triton(device)


def _is_in_cuda(device: torch.device) -> bool:
    return in_cuda(device) and shared_memory(device) >= _paired_memory()


def _is_in_triton(device: torch.device) -> bool:
    """Whether Triton and the device have what its kernel needs."""
    if TensorDescriptor is None or device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return shared_memory(device) >= STAGES * (ROWS + 2 * COLUMNS) * DEPTH * 2 + _BARRIERS


def fit(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The kernel that computes this quicker than a product and a gate, if one does.

    It takes 16 bits and whole tiles, and needs enough of these for the device.
    """
    if not (
        x.dtype in (torch.float16, torch.bfloat16)
        and weight.dtype == bias.dtype == x.dtype
        and x.shape[-1] % DEPTH == 0
        and len(bias) % (2 * COLUMNS) == 0
        and all(tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 for tensor in (x, weight, bias))
        and x.numel() > 0
    ):
        return None
    rows, columns = x.numel() // x.shape[-1], len(weight) // (2 * COLUMNS)
    count = processors(x.device)
    if _is_in_cuda(x.device) and triton.cdiv(rows, PAIR * ROWS) * columns >= PAIRED_TURNS * (count // PAIR):
        return paired
    if _is_in_triton(x.device) and triton.cdiv(rows, ROWS) * columns >= TURNS * count:
        return fused
    return None


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


def paired(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in CUDA C++."""
    half, width = len(weight) // 2, x.shape[-1]
    rows = x.numel() // width
    y = x.new_empty(*x.shape[:-1], half)
    down, across = triton.cdiv(rows, PAIR * ROWS), half // COLUMNS
    pairs = min(processors(x.device) // PAIR, down * across)
    # neighbours have in common what is the larger of the two
    rows_first = int(rows <= 2 * half)
    launch(
        Source.of("gated", x.dtype, (2 * COLUMNS,), STAGES=STAGES),
        (PAIR * pairs, 1, 1),
        384,
        (
            Tiles(x.view(rows, width), (ROWS, DEPTH)), Tiles(weight, (COLUMNS // PAIR, DEPTH)), bias, y, rows, half,
            width, down, across, rows_first,
        ),
        device=x.device,
        cluster=PAIR,
        shared=_paired_memory(),
    )  # fmt: skip
    return y


def _paired_memory() -> int:
    """Bytes: the stages from a multiple of 1024 on, and two barriers for each."""
    return STAGES * ((ROWS + 2 * COLUMNS) * DEPTH * 2 + 16) + 1024
