"""Sampling of classes by the Gumbel-max trick, for the schedulers of discrete models."""

from __future__ import annotations

import torch


def uniform(
    like: torch.Tensor, generator: torch.Generator | None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Uniform numbers in [0, 1) shaped as ``like``, drawn where the generator lives."""
    where = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=where, dtype=dtype).to(like.device)
