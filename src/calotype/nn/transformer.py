"""Transformer blocks, and the transformer that works on the pixels of a U-Net's feature map."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.attention import Attention
from calotype.nn.embeddings import SinusoidalPositions
from calotype.nn.feed_forward import FeedForward
from calotype.nn.grounding import GatedSelfAttention
from calotype.nn.replaceable import replaceable

_GATED = ("gated", "gated-text-image")


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward, each after a layer norm and added to its input.

    With ``only_cross_attention`` the first attention reads the context too; with ``double_self_attention`` the
    second one reads the input. With ``positions`` attention is told the places of so many tokens at most.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        dropout: float = 0.0,
        cross_attention_dim: int | None = None,
        activation_fn: str = "geglu",
        attention_bias: bool = False,
        only_cross_attention: bool = False,
        double_self_attention: bool = False,
        upcast_attention: bool = False,
        norm_elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        final_dropout: bool = False,
        attention_type: str = "default",
        positions: int | None = None,
    ) -> None:
        super().__init__()
        if attention_type not in ("default", *_GATED):
            raise InputError(
                f"attention_type is 'default', 'gated' or 'gated-text-image', not {attention_type!r}."
            )
        self.only_cross_attention = only_cross_attention

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=norm_elementwise_affine)

        def attention(context_dim: int | None) -> Attention:
            return Attention(
                query_dim=dim,
                cross_attention_dim=context_dim,
                heads=num_attention_heads,
                dim_head=attention_head_dim,
                dropout=dropout,
                bias=attention_bias,
                upcast_attention=upcast_attention,
            )

        self.pos_embed = None if positions is None else SinusoidalPositions(dim, positions)
        self.norm1 = norm()
        self.attn1 = attention(cross_attention_dim if only_cross_attention else None)
        self.norm2: nn.LayerNorm | None = None
        self.attn2: Attention | None = None
        if cross_attention_dim is not None or double_self_attention:
            self.norm2 = norm()
            self.attn2 = attention(None if double_self_attention else cross_attention_dim)
        self.norm3 = norm()
        self.ff = FeedForward(dim, dropout=dropout, activation_fn=activation_fn, final_dropout=final_dropout)
        if attention_type in _GATED:
            assert cross_attention_dim is not None
            self.fuser = GatedSelfAttention(dim, cross_attention_dim, num_attention_heads, attention_head_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        kwargs = dict(cross_attention_kwargs or {})
        grounding, windows = kwargs.pop("gligen", None), kwargs.pop("windows", None)

        def attended(h: torch.Tensor) -> torch.Tensor:
            h = h + self.attn1(
                self.placed(self.norm1(h)),
                encoder_hidden_states=encoder_hidden_states if self.only_cross_attention else None,
                attention_mask=attention_mask,
                **kwargs,
            )
            if grounding is not None:
                h = self.fuser(h, grounding["objs"])
            if self.attn2 is not None and self.norm2 is not None:
                h = h + self.attn2(
                    self.placed(self.norm2(h)),
                    encoder_hidden_states=encoder_hidden_states,
                    attention_mask=encoder_attention_mask,
                    **kwargs,
                )
            return h

        hidden_states = attended(hidden_states) if windows is None else windows.mean(attended, hidden_states)
        return hidden_states + self.ff(self.norm3(hidden_states))

    def placed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens as attention reads them."""
        return tokens if self.pos_embed is None else self.pos_embed(tokens)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, between two projections, added to the map.

    https://arxiv.org/abs/2112.10752. The projections are 1x1 convolutions, or matrices with
    ``use_linear_projection``.
    """

    def __init__(
        self,
        num_attention_heads: int,
        attention_head_dim: int,
        in_channels: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        cross_attention_dim: int | None = None,
        attention_bias: bool = False,
        activation_fn: str = "geglu",
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        double_self_attention: bool = False,
        upcast_attention: bool = False,
        attention_type: str = "default",
    ) -> None:
        super().__init__()
        inner = num_attention_heads * attention_head_dim
        self.use_linear_projection = use_linear_projection
        self.norm = nn.GroupNorm(norm_num_groups, in_channels, eps=1e-6)
        self.proj_in: nn.Module = (
            nn.Linear(in_channels, inner) if use_linear_projection else nn.Conv2d(in_channels, inner, 1)
        )
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner,
                num_attention_heads,
                attention_head_dim,
                dropout=dropout,
                cross_attention_dim=cross_attention_dim,
                activation_fn=activation_fn,
                attention_bias=attention_bias,
                only_cross_attention=only_cross_attention,
                double_self_attention=double_self_attention,
                upcast_attention=upcast_attention,
                attention_type=attention_type,
            )
            for _ in range(num_layers)
        )
        self.proj_out: nn.Module = (
            nn.Linear(inner, in_channels) if use_linear_projection else nn.Conv2d(inner, in_channels, 1)
        )

    @replaceable
    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """(batch, channels, height, width) -> the same; the masks are added to the attention's scores."""
        h = self.norm(hidden_states)
        if self.use_linear_projection:
            h = self.proj_in(h.flatten(2).transpose(1, 2))
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(
                h,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                cross_attention_kwargs=cross_attention_kwargs,
            )
        size = hidden_states.shape[2:]
        if self.use_linear_projection:
            h = self.proj_out(h).transpose(1, 2).unflatten(2, size)
        else:
            h = self.proj_out(h.transpose(1, 2).unflatten(2, size))
        return h + hidden_states


class DualTransformer(nn.Module):
    """Two transformers over two parts of the context, whose changes are mixed (https://arxiv.org/abs/2211.08332).

    The context (batch, 77 + 257, channels) is text tokens, then image tokens; text is read by the second
    transformer, images by the first. ``mix_ratio`` is the weight of the text's change.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.transformers = nn.ModuleList(SpatialTransformer(**settings) for _ in range(2))
        self.mix_ratio = 0.5
        self.condition_lengths = [77, 257]
        self.transformer_index_for_condition = [1, 0]

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        first, second = self.condition_lengths
        parts = (encoder_hidden_states[:, :first], encoder_hidden_states[:, first : first + second])
        text, image = (
            self.transformers[index](
                hidden_states, part, attention_mask, cross_attention_kwargs=cross_attention_kwargs
            )
            for index, part in zip(self.transformer_index_for_condition, parts, strict=True)
        )
        return self.mix_ratio * text + (1 - self.mix_ratio) * image
