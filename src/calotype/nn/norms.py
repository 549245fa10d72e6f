"""Normalisations whose scale and shift come from a condition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from calotype.nn.activations import activation
from calotype.nn.replaceable import replaceable


@replaceable
def activated_norm(x: torch.Tensor, norm: nn.Module, act: nn.Module) -> torch.Tensor:
    """``act(norm(x))``."""
    return act(norm(x))


class AdaGroupNorm(nn.Module):
    """Group normalisation with scale and shift predicted from an embedding (https://arxiv.org/abs/2105.05233).

    ``x`` is (batch, channels, height, width), ``emb`` is (batch, embedding_dim).
    """

    def __init__(
        self, embedding_dim: int, out_dim: int, num_groups: int, act_fn: str | None = None, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.eps = eps
        self.act = None if act_fn is None else activation(act_fn)
        self.linear = nn.Linear(embedding_dim, 2 * out_dim)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        if self.act is not None:
            emb = self.act(emb)
        scale, shift = self.linear(emb)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, F.group_norm(x, self.num_groups, eps=self.eps), 1 + scale)


class SpatialNorm(nn.Module):
    """Group normalisation with scale and shift predicted at each pixel from a feature map.

    MoVQ, https://arxiv.org/abs/2209.09002. ``f`` is (batch, f_channels, height, width); ``zq`` is (batch,
    zq_channels, h, w) of any resolution.
    """

    def __init__(self, f_channels: int, zq_channels: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(num_groups=32, num_channels=f_channels, eps=1e-6)
        self.conv_y = nn.Conv2d(zq_channels, f_channels, kernel_size=1)
        self.conv_b = nn.Conv2d(zq_channels, f_channels, kernel_size=1)

    def forward(self, f: torch.Tensor, zq: torch.Tensor) -> torch.Tensor:
        zq = F.interpolate(zq, size=f.shape[-2:], mode="nearest")
        return self.norm_layer(f) * self.conv_y(zq) + self.conv_b(zq)
