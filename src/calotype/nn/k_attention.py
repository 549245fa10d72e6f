"""The attention block of k-diffusion's U-Nets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from calotype.nn.attention import Attention
from calotype.nn.norms import AdaGroupNorm


class KAttentionBlock(nn.Module):
    """Optional self-attention, then attention to the context, each after a norm that reads the time embedding."""

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        dropout: float = 0.0,
        cross_attention_dim: int | None = None,
        attention_bias: bool = False,
        upcast_attention: bool = False,
        temb_channels: int = 768,
        add_self_attention: bool = False,
        cross_attention_norm: str | None = None,
        group_size: int = 32,
    ) -> None:
        super().__init__()
        groups = max(1, dim // group_size)
        self.add_self_attention = add_self_attention

        def attention(context_dim: int | None, context_norm: str | None) -> Attention:
            return Attention(
                query_dim=dim,
                cross_attention_dim=context_dim,
                heads=num_attention_heads,
                dim_head=attention_head_dim,
                dropout=dropout,
                bias=attention_bias,
                upcast_attention=upcast_attention,
                cross_attention_norm=context_norm,
            )

        if add_self_attention:
            self.norm1 = AdaGroupNorm(temb_channels, dim, groups)
            self.attn1 = attention(None, None)
        self.norm2 = AdaGroupNorm(temb_channels, dim, groups)
        self.attn2 = attention(cross_attention_dim, cross_attention_norm)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        emb: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """(batch, channels, height, width) -> the same, told ``emb`` (batch, temb_channels)."""
        kwargs = cross_attention_kwargs or {}
        h = hidden_states
        if self.add_self_attention:
            h = h + self.attn1(self.norm1(h, emb), attention_mask=attention_mask, **kwargs)
        mask = attention_mask if encoder_hidden_states is None else encoder_attention_mask
        return h + self.attn2(
            self.norm2(h, emb),
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=mask,
            **kwargs,
        )
