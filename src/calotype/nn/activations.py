"""Activation functions by the names that configurations use, and the gated ones of transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.replaceable import replaceable

_BY_NAME: dict[str, type[nn.Module]] = {
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


def activation(name: str) -> nn.Module:
    """The activation function that a configuration calls ``name``; ``InputError`` if there is none."""
    try:
        return _BY_NAME[name.lower()]()
    except (KeyError, AttributeError):
        raise InputError(
            f"There is no activation function {name!r}; the known ones are {', '.join(_BY_NAME)}."
        ) from None


class GEGLU(nn.Module):
    """``x W · gelu(x V)``, the gated unit of https://arxiv.org/abs/2002.05202, with W and V in one matrix."""

    def __init__(self, dim_in: int, dim_out: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out, bias=bias)

    @replaceable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gate = F.gelu(gate)
        # the product of what no gradient needs takes the activation's place
        return value * gate if gate.requires_grad else gate.mul_(value)


class GELU(nn.Module):
    """``gelu(x W)``; ``approximate`` is ``"none"`` or ``"tanh"``."""

    def __init__(self, dim_in: int, dim_out: int, approximate: str = "none", bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out, bias=bias)
        self.approximate = approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(x), approximate=self.approximate)


class ApproximateGELU(nn.Module):
    """``h · σ(1.702 h)`` with ``h = x W``: the sigmoid approximation of https://arxiv.org/abs/1606.08415."""

    def __init__(self, dim_in: int, dim_out: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.proj(x)
        return h * torch.sigmoid(1.702 * h)
