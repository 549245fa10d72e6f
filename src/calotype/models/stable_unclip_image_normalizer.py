"""The statistics of CLIP's picture embeddings, in whose unit Stable unCLIP noises them."""

from __future__ import annotations

import torch
from torch import nn

from calotype.models.modeling import ModelMixin


class StableUnCLIPImageNormalizer(ModelMixin):
    """Mean and standard deviation of each of the ``embedding_dim`` channels of CLIP's embeddings."""

    def __init__(self, embedding_dim: int = 768) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, embedding_dim))
        self.std = nn.Parameter(torch.ones(1, embedding_dim))

    def scale(self, embeds: torch.Tensor) -> torch.Tensor:
        """Embeddings (batch, embedding_dim) brought to mean 0 and deviation 1."""
        return (embeds - self.mean) / self.std

    def unscale(self, embeds: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`scale`."""
        return embeds * self.std + self.mean
