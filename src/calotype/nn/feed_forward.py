"""The two-layer network between attentions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.activations import GEGLU, GELU, ApproximateGELU

_FIRST_LAYER: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "geglu": lambda dim, inner, bias: GEGLU(dim, inner, bias=bias),
    "gelu": lambda dim, inner, bias: GELU(dim, inner, bias=bias),
    "gelu-approximate": lambda dim, inner, bias: GELU(dim, inner, approximate="tanh", bias=bias),
    "geglu-approximate": lambda dim, inner, bias: ApproximateGELU(dim, inner, bias=bias),
}


class FeedForward(nn.Module):
    """(…, dim) -> (…, dim_out) through ``mult * dim`` channels.

    With a ``chunk_size`` so many items of the dimension ``chunk_dim`` are computed at a time, in less memory.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        mult: int = 4,
        dropout: float = 0.0,
        activation_fn: str = "geglu",
        final_dropout: bool = False,
        inner_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.chunk_size: int | None = None
        self.chunk_dim = 0
        if activation_fn not in _FIRST_LAYER:
            raise InputError(
                f"There is no feed-forward activation {activation_fn!r}; the known ones are "
                f"{', '.join(_FIRST_LAYER)}."
            )
        inner = int(dim * mult) if inner_dim is None else inner_dim
        self.net = nn.ModuleList(
            [
                _FIRST_LAYER[activation_fn](dim, inner, bias),
                nn.Dropout(dropout),
                nn.Linear(inner, dim_out or dim, bias=bias),
            ]
        )
        if final_dropout:
            self.net.append(nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.chunk_size is None:
            return self._through(x)
        parts = x.split(self.chunk_size, dim=self.chunk_dim)
        return torch.cat([self._through(part) for part in parts], dim=self.chunk_dim)

    def _through(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.net:
            x = layer(x)
        return x
