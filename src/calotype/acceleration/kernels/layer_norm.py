"""Layer normalisation of a sum: one kernel adds what a layer has found and normalises (https://arxiv.org/abs/1607.06450).

In 16 bits it is in CUDA C++ (`cuda/layer_norm.cu`), whose threads keep what they have read; otherwise in Triton.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel
from calotype.acceleration.cuda.available import available
from calotype.acceleration.cuda.program import Source, launch

VECTOR = 8
"""Numbers that a thread reads at once: 16 bytes."""
FEW, MOST = 5, 8
"""Such vectors of a thread: as many as of a row of 320, 640 or 1280 numbers if more can share it, and at most."""
THREADS, WARP = 128, 32


@Kernel
@triton.jit
def rows_normalised(
    x,
    more,
    total,
    y,
    weight,
    bias,
    rows,
    width,
    eps,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Each row of ``x`` (+ ``more``, stored as ``total``) normalised, scaled and shifted."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    inside = (row < rows)[:, None] & (lane < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + lane[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(more + at, mask=inside, other=0.0).to(tl.float32)
        kept = value.to(total.dtype.element_ty)
        tl.store(total + at, kept, mask=inside)
        value = kept.to(tl.float32)
    mean = tl.sum(value, axis=1) / width
    apart = tl.where(inside, value - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(apart * apart, axis=1) / width + eps)
    w = tl.load(weight + lane, mask=lane < width, other=0.0).to(tl.float32)
    b = tl.load(bias + lane, mask=lane < width, other=0.0).to(tl.float32)
    result = apart * scale[:, None] * w[None, :] + b[None, :]
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


def plain(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same in PyTorch."""
    total = x if more is None else x + more
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def fused(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``x`` + ``more`` (…, channels), and that normalised over the channels."""
    x = x.contiguous()
    more = None if more is None else more.contiguous()
    y = torch.empty_like(x)
    total = x if more is None else torch.empty_like(x)
    (_in_cuda if _is_in_cuda(x, weight, bias, more) else _in_triton)(x, more, total, y, weight, bias, eps)
    return total, y


def check(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel in CUDA C++ computes of little, and what that should be."""
    x, more = (
        torch.linspace(-2, 2, 9 * 320, device=device).mul(n).sin().bfloat16().view(9, 320) for n in (7, 9)
    )
    total, y, weight, bias = torch.empty_like(x), torch.empty_like(x), x[0], more[0]
    _in_cuda(x, more, total, y, weight, bias, 1e-5)
    return torch.cat([total, y]), torch.cat(plain(x, weight, bias, 1e-5, more))


def shared(width: int) -> tuple[int, int]:
    """Threads that share a row, and vectors of each."""
    vectors, lanes = width // VECTOR, 1
    while lanes < WARP and vectors > FEW * lanes:
        lanes *= 2
    return lanes, -(-vectors // lanes)


def _is_in_cuda(x: Tensor, *others: Tensor | None) -> bool:
    given = [x, *(other for other in others if other is not None)]
    return (
        x.dtype in (torch.float16, torch.bfloat16)
        and all(one.dtype == x.dtype and one.data_ptr() % 16 == 0 and one.stride(-1) == 1 for one in given)
        and x.shape[-1] % VECTOR == 0
        and 0
        < x.numel()
        < 2**31 * VECTOR  # threads, each of which has a vector at least, are counted in an int
        and shared(x.shape[-1])[1] <= MOST
        and available(x.device)
    )


def _in_cuda(
    x: Tensor, more: Tensor | None, total: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> None:
    width = x.shape[-1]
    rows, (lanes, vectors) = x.numel() // width, shared(width)
    launch(
        Source.of("layer_norm", x.dtype, VECTORS=vectors),
        (-(-rows * lanes // THREADS), 1, 1),
        THREADS,
        (x, more, total, y, weight, bias, rows, width, lanes, float(eps)),
        device=x.device,
    )


def _in_triton(
    x: Tensor, more: Tensor | None, total: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> None:
    width = x.shape[-1]
    rows = x.numel() // width
    lanes = triton.next_power_of_2(width)
    each = max(2048 // lanes, 1)
    rows_normalised[(triton.cdiv(rows, each),)](
        x, x if more is None else more, total, y, weight, bias, rows, width, eps, more is not None, each, lanes,
        num_warps=4,
    )  # fmt: skip
