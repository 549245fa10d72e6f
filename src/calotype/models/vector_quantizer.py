"""Vector quantisation with a learned codebook (https://arxiv.org/abs/1711.00937)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

COMMITMENT = 0.25
"""Weight of one of the two halves of the loss (β in the paper)."""


class VectorQuantizer(nn.Module):
    """Replaces each pixel of a feature map by the nearest of ``n_e`` vectors of ``vq_embed_dim`` channels."""

    reads_weights_below: ClassVar[bool] = True
    """Its children's weights are read without calling them, so they come and go with it."""

    def __init__(self, n_e: int, vq_embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_e, vq_embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_e, 1.0 / n_e)

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Codebook indices (batch, height, width) of ``z`` (batch, channels, height, width)."""
        pixels = z.movedim(1, -1)
        return torch.cdist(pixels.flatten(0, -2), self.embedding.weight).argmin(dim=1).view(pixels.shape[:-1])

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """The vectors of ``indices`` (batch, height, width) as a map (batch, channels, height, width)."""
        return self.embedding(indices).movedim(-1, 1)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantised ``z`` of the same shape, the loss, and the indices.

        In the backward pass the quantised map passes its gradient on to ``z`` as if they were equal. The loss draws
        both together, β weighing the pull on the codebook: published models were trained with it on that side.
        """
        indices = self.nearest(z)
        quantised = self.lookup(indices)
        loss = F.mse_loss(z, quantised.detach()) + COMMITMENT * F.mse_loss(quantised, z.detach())
        return z + (quantised - z).detach(), loss, indices
