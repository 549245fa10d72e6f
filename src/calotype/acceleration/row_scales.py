"""Rows of a matrix in eight bits with a factor each, and back; in Triton on CUDA, in PyTorch elsewhere."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

TYPES = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
"""The types, and the largest value that is used of each."""
SMALLEST = 1e-12
"""The least that counts as the largest value of a row, so that rows of zeros stay zero."""


def quantised(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(rows, width) in eight bits, and what each row is to be multiplied by, (rows, 1) in float32."""
    if x.is_cuda and (kernels := kernels_for(x.device)) is not None:
        found: tuple[Tensor, Tensor] = kernels.quantised(x, *TYPES[kind])
        return found
    return plain_quantised(x, kind)


def plain_quantised(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The same in PyTorch."""
    dtype, top = TYPES[kind]
    x = x.float()
    highest, lowest = x.amax(dim=-1, keepdim=True), x.amin(dim=-1, keepdim=True)
    scales = torch.maximum(highest, -lowest).clamp_(min=SMALLEST) / top
    values = x * scales.reciprocal()
    return (values.round_() if dtype == torch.int8 else values.clamp_(-top, top)).to(dtype), scales


def dequantised(
    sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Sums (rows, columns) in int32 times the factors (rows, 1) and (columns, 1), and the bias (columns,)."""
    if sums.is_cuda and (kernels := kernels_for(sums.device)) is not None:
        found: Tensor = kernels.dequantised(sums, rows, columns, bias, dtype)
        return found
    return plain_dequantised(sums, rows, columns, bias, dtype)


def plain_dequantised(
    sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The same in PyTorch."""
    out, factors = sums.float().mul_(rows), columns.t()
    return (out.mul_(factors) if bias is None else torch.addcmul(bias.float(), out, factors)).to(dtype)


@cache
def kernels_for(device: torch.device) -> ModuleType | None:
    """The Triton kernels, where Triton is and what it builds computes on the device what PyTorch does."""
    try:
        from calotype.acceleration.kernels import rows

        with torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
            x = torch.linspace(-3, 2, 128, device=device).view(2, 64)
            found, right = rows.quantised(x, *TYPES["int8"]), plain_quantised(x, "int8")
            torch.testing.assert_close(found[1], right[1])
            torch.testing.assert_close(found[0].float(), right[0].float(), rtol=0, atol=1)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning("Rows are brought to eight bits without Triton: %s.", reason)
        return None
    return rows
