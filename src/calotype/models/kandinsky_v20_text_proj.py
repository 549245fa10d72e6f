"""How the UNet of Kandinsky 2.0 is told what two text encoders read (ai-forever/Kandinsky-2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from calotype.models.modeling import ModelMixin


class FirstTokenPooling(nn.Module):
    """Attention of all heads whose one query is the first token: (batch, n, channels) -> (batch, out_dim)."""

    def __init__(self, heads: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(in_dim, in_dim)
        self.v_linear = nn.Linear(in_dim, in_dim)
        self.k_linear = nn.Linear(in_dim, in_dim)
        self.out = nn.Linear(in_dim, out_dim)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        projected = self.q_linear(states[:, :1]), self.k_linear(states), self.v_linear(states)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected)
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(pooled)[:, 0]


class KandinskyV20TextProjModel(ModelMixin):
    """Two readings of a text as one context, and as an addition to the time's embedding.

    The first encoder (mCLIP) has states of ``text_dim`` channels and a vector of ``pooled_dim``, the second (mT5)
    states of ``text_dim_2`` channels, which ``pooling_heads`` pool.
    """

    def __init__(
        self,
        text_dim: int = 1024,
        pooled_dim: int = 640,
        text_dim_2: int = 512,
        cross_attention_dim: int = 768,
        time_embed_dim: int = 1536,
        pooling_heads: int = 8,
    ) -> None:
        super().__init__()
        self.to_model_dim = nn.Linear(text_dim, cross_attention_dim)
        self.proj = nn.Linear(pooled_dim, time_embed_dim)
        self.proj2 = FirstTokenPooling(pooling_heads, text_dim_2, time_embed_dim)
        self.to_model_dim2 = nn.Linear(text_dim_2, cross_attention_dim)
        self.ln_model1 = nn.LayerNorm(cross_attention_dim)
        self.ln_model2 = nn.LayerNorm(time_embed_dim)
        self.ln_model3 = nn.LayerNorm(time_embed_dim)

    def forward(
        self, states: torch.Tensor, pooled: torch.Tensor, states_2: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Context (batch, n + m, cross_attention_dim) and addition to the time (batch, time_embed_dim).

        ``states`` (batch, n, text_dim) and ``pooled`` (batch, pooled_dim) are the first encoder's, ``states_2``
        (batch, m, text_dim_2) the second's. Every token counts, padding too: so the network was trained.
        """
        context = torch.cat([self.to_model_dim(states), self.to_model_dim2(states_2)], dim=1)
        time = self.ln_model2(self.proj(pooled)) + self.ln_model3(self.proj2(states_2))
        return self.ln_model1(context), time
