"""Grounding, things at given places: GLIGEN, https://arxiv.org/abs/2301.07093."""

from __future__ import annotations

import torch
from torch import nn

from calotype.nn.attention import Attention
from calotype.nn.feed_forward import FeedForward


class GatedSelfAttention(nn.Module):
    """Attention among pixels and grounding tokens, then a feed-forward, each let in by a learned gate.

    With ``enabled`` false the pixels pass unchanged, as in the later steps of sampling.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.enabled = True
        self.alpha_attn, self.alpha_dense = (nn.Parameter(torch.zeros(())) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        # grounding tokens are brought to the pixels' width, so that both can be attended to alike
        self.linear = nn.Linear(context_dim, dim)
        self.attn = Attention(dim, heads=heads, dim_head=head_dim)
        self.ff = FeedForward(dim)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Pixels (batch, n, dim) told of ``tokens`` (batch, m, context_dim)."""
        if not self.enabled:
            return x
        together = self.norm1(torch.cat([x, self.linear(tokens)], dim=1))
        x = x + self.alpha_attn.tanh() * self.attn(together)[:, : x.shape[1]]
        return x + self.alpha_dense.tanh() * self.ff(self.norm2(x))


def box_embedding(boxes: torch.Tensor, num_frequencies: int = 8) -> torch.Tensor:
    """Sines and cosines of box corners (batch, n, 4) in [0, 1]: (batch, n, 8 * num_frequencies)."""
    powers = torch.arange(num_frequencies, device=boxes.device, dtype=torch.float32) / num_frequencies
    angles = (100.0**powers)[:, None] * boxes[:, :, None, :]
    return torch.stack([angles.sin(), angles.cos()], dim=3).flatten(2)


class GroundingProjection(nn.Module):
    """Boxes and what stands in them made into tokens (https://arxiv.org/abs/2301.07093).

    Things are described by text, or with ``with_images`` by text and pictures, whose tokens follow the text's. A
    mask of 0 puts a learned vector in the place of what is absent.
    """

    def __init__(self, positive_len: int, out_dim: int, with_images: bool = False) -> None:
        super().__init__()
        position_dim = 8 * 8

        def network() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(positive_len + position_dim, 512),
                nn.SiLU(),
                nn.Linear(512, 512),
                nn.SiLU(),
                nn.Linear(512, out_dim),
            )

        self.with_images = with_images
        if with_images:
            self.linears_text = network()
            self.linears_image = network()
            self.null_text_feature = nn.Parameter(torch.zeros(positive_len))
            self.null_image_feature = nn.Parameter(torch.zeros(positive_len))
        else:
            self.linears = network()
            self.null_positive_feature = nn.Parameter(torch.zeros(positive_len))
        self.null_position_feature = nn.Parameter(torch.zeros(position_dim))

    def forward(
        self,
        boxes: torch.Tensor,
        masks: torch.Tensor,
        positive_embeddings: torch.Tensor | None = None,
        phrases_masks: torch.Tensor | None = None,
        image_masks: torch.Tensor | None = None,
        phrases_embeddings: torch.Tensor | None = None,
        image_embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Boxes (batch, n, 4), masks (batch, n), embeddings (batch, n, positive_len) -> (batch, n or 2n, out_dim)."""

        def present(x: torch.Tensor, mask: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
            mask = mask[..., None]
            return x * mask + (1 - mask) * absent

        places = present(box_embedding(boxes), masks, self.null_position_feature)
        if not self.with_images:
            assert positive_embeddings is not None
            things = present(positive_embeddings, masks, self.null_positive_feature)
            return self.linears(torch.cat([things, places], dim=-1))
        assert phrases_embeddings is not None and phrases_masks is not None
        assert image_embeddings is not None and image_masks is not None
        texts = present(phrases_embeddings, phrases_masks, self.null_text_feature)
        pictures = present(image_embeddings, image_masks, self.null_image_feature)
        return torch.cat(
            [
                self.linears_text(torch.cat([texts, places], dim=-1)),
                self.linears_image(torch.cat([pictures, places], dim=-1)),
            ],
            dim=1,
        )
