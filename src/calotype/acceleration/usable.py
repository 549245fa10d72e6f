"""The kernels that can be used on a device, beside the same in PyTorch."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from calotype.acceleration.ahead import compiled_first

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """The kernels where they can run on a tensor; the same in PyTorch elsewhere."""

    group_norm: ModuleType
    layer_norm: ModuleType
    pointwise: ModuleType
    softmax: ModuleType
    products: ModuleType
    matrix_products: ModuleType
    gate_products: ModuleType
    convolutions: ModuleType
    short_attention: ModuleType
    narrow_attention: ModuleType

    @staticmethod
    def take(*tensors: Tensor | None) -> bool:
        """Whether kernels may read these tensors."""
        return all(x is None or (x.is_cuda and x.dtype in _DTYPES) for x in tensors)


_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@cache
def kernels_for(device: torch.device) -> Kernels | None:
    """The Triton kernels, where Triton is and what it builds computes on the device what PyTorch does."""
    try:
        import triton

        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
            raise ImportError(f"Triton {triton.__version__} is too old")
        from calotype.acceleration import affine_kernel
        from calotype.acceleration.cuda.available import as_ever, available, tried
        from calotype.acceleration.kernels import (
            convolutions,
            gate_products,
            group_norm,
            layer_norm,
            matrix_products,
            narrow_attention,
            pointwise,
            products,
            short_attention,
            softmax,
        )

        if device.type == "cuda":
            with as_ever(device):
                with suppress(Exception):  # what is wrong with one of them is found out below
                    compiled_first(
                        lambda: (_normalised(layer_norm, device), tried(device), affine_kernel.tried(device))
                    )
                found, right = _normalised(layer_norm, device)
                torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
        available(device)  # found out here, before anything is captured
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning("Norms, gates and sums are computed without Triton: %s.", reason)
        return None
    return Kernels(
        group_norm, layer_norm, pointwise, softmax, products, matrix_products, gate_products, convolutions,
        short_attention, narrow_attention,
    )  # fmt: skip


def _normalised(layer_norm: ModuleType, device: torch.device) -> tuple[Tensor, Tensor]:
    """What Triton computes of little, and what that should be."""
    x = torch.linspace(-2, 2, 64, device=device, dtype=torch.float32).view(2, 32)
    w = torch.ones(32, device=device)
    return layer_norm.fused(x, w, w, 1e-5)[1], layer_norm.plain(x, w, w, 1e-5)[1]
