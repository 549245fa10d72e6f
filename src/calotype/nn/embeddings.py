"""How a time (or another number) becomes a vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.activations import activation


def sinusoidal_embedding(
    values: torch.Tensor,
    dim: int,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1.0,
    scale: float = 1.0,
    max_period: float = 10000.0,
) -> torch.Tensor:
    """Sines and cosines of ``values`` (n,) at ``dim // 2`` geometrically spaced frequencies: (n, dim), float32.

    Section 3.5 of https://arxiv.org/abs/1706.03762; cosines come first with ``flip_sin_to_cos``. An odd
    ``dim`` is filled with a zero.
    """
    if values.ndim != 1:
        raise InputError(f"Times must be a vector, one for each sample, not of shape {tuple(values.shape)}.")
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    frequencies = torch.exp(steps * (-math.log(max_period) / (half - downscale_freq_shift)))
    angles = scale * (values[:, None].float() * frequencies)
    parts = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    embedding = torch.cat(parts, dim=-1)
    return F.pad(embedding, (0, 1)) if dim % 2 else embedding


class Timesteps(nn.Module):
    """:func:`sinusoidal_embedding` as a module without weights."""

    def __init__(
        self, num_channels: int, flip_sin_to_cos: bool, downscale_freq_shift: float, scale: float = 1
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.flip_sin_to_cos = flip_sin_to_cos
        self.downscale_freq_shift = downscale_freq_shift
        self.scale = scale

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        return sinusoidal_embedding(
            timesteps, self.num_channels, self.flip_sin_to_cos, self.downscale_freq_shift, self.scale
        )


class GaussianFourierProjection(nn.Module):
    """Sines and cosines of ``x`` (n,) at fixed random frequencies: (n, 2 * embedding_size).

    https://arxiv.org/abs/2006.10739. With ``log`` the logarithm of ``x`` is embedded, as score models do with
    noise levels.
    """

    def __init__(
        self, embedding_size: int = 256, scale: float = 1.0, log: bool = True, flip_sin_to_cos: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(embedding_size) * scale, requires_grad=False)
        self.log = log
        self.flip_sin_to_cos = flip_sin_to_cos

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.log:
            x = x.log()
        angles = x[:, None] * self.weight * (2 * math.pi)
        parts = [angles.cos(), angles.sin()] if self.flip_sin_to_cos else [angles.sin(), angles.cos()]
        return torch.cat(parts, dim=-1)


class TimestepEmbedding(nn.Module):
    """The two-layer network that turns a time's sinusoids (batch, in_channels) into (batch, out_dim).

    ``cond_proj_dim`` adds a projected condition to the input (the guidance scale of distilled models,
    https://arxiv.org/abs/2210.03142).
    """

    def __init__(
        self,
        in_channels: int,
        time_embed_dim: int,
        act_fn: str = "silu",
        out_dim: int | None = None,
        post_act_fn: str | None = None,
        cond_proj_dim: int | None = None,
        sample_proj_bias: bool = True,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim, bias=sample_proj_bias)
        self.cond_proj = None if cond_proj_dim is None else nn.Linear(cond_proj_dim, in_channels, bias=False)
        self.act = activation(act_fn)
        self.linear_2 = nn.Linear(time_embed_dim, out_dim or time_embed_dim, bias=sample_proj_bias)
        self.post_act = None if post_act_fn is None else activation(post_act_fn)

    def forward(self, sample: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        if condition is not None:
            if self.cond_proj is None:
                raise InputError(
                    "A condition was given to a time embedding that has no projection for one: this model's "
                    "time_cond_proj_dim is None, so leave timestep_cond out."
                )
            sample = sample + self.cond_proj(condition)
        embedding = self.linear_2(self.act(self.linear_1(sample)))
        return embedding if self.post_act is None else self.post_act(embedding)


class SinusoidalPositions(nn.Module):
    """Tokens (batch, length, dim) plus sines and cosines of their places (https://arxiv.org/abs/1706.03762)."""

    pe: torch.Tensor

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        places = torch.arange(length, dtype=torch.float32)[:, None]
        angles = places * torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
        self.register_buffer("pe", torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1] > self.pe.shape[1]:
            raise InputError(
                f"There are {tokens.shape[1]} frames; this model knows the places of at most {self.pe.shape[1]}."
            )
        return tokens + self.pe[:, : tokens.shape[1]]
