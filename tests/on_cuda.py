"""What tests on a CUDA device share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def whole_float32() -> Iterator[None]:
    """Without the matrix units' short float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def error(found: Tensor, right: Tensor) -> float:
    """The relative error, in the root mean square."""
    return float((found.double() - right.double()).norm() / right.double().norm())


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers on the device."""
    return torch.randn(*shape, device="cuda").to(dtype)
