"""How conditions other than the time enter a U-Net: added to the time's embedding, or as tokens to attend to."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class TokenProjection(nn.Module):
    """A vector made into tokens by one matrix, normalised: (batch, image_embed_dim) -> (batch, n, width)."""

    def __init__(
        self, image_embed_dim: int, cross_attention_dim: int, num_image_text_embeds: int = 32
    ) -> None:
        super().__init__()
        self.num_image_text_embeds = num_image_text_embeds
        self.image_embeds = nn.Linear(image_embed_dim, num_image_text_embeds * cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        tokens = self.image_embeds(image_embeds.to(self.image_embeds.weight.dtype))
        return self.norm(tokens.unflatten(-1, (self.num_image_text_embeds, -1)))


class TextImageProjection(nn.Module):
    """Tokens made from a picture's vector, then the projected text tokens (Kandinsky 2.1)."""

    def __init__(
        self,
        text_embed_dim: int,
        image_embed_dim: int,
        cross_attention_dim: int,
        num_image_text_embeds: int = 10,
    ) -> None:
        super().__init__()
        self.num_image_text_embeds = num_image_text_embeds
        self.image_embeds = nn.Linear(image_embed_dim, num_image_text_embeds * cross_attention_dim)
        self.text_proj = nn.Linear(text_embed_dim, cross_attention_dim)

    def forward(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        tokens = self.image_embeds(image_embeds).unflatten(-1, (self.num_image_text_embeds, -1))
        return torch.cat([tokens, self.text_proj(text_embeds)], dim=1)


class AttentionPooling(nn.Module):
    """(batch, n, width) -> (batch, width): the mean token asks, itself and all tokens answer."""

    def __init__(self, num_heads: int, embed_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(1, embed_dim) / embed_dim**0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        summary = x.mean(dim=1, keepdim=True) + self.positional_embedding
        x = torch.cat([summary, x], dim=1)
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.q_proj(summary), self.k_proj(x), self.v_proj(x))
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)


class TextTimeEmbedding(nn.Module):
    """Text tokens pooled to one vector as wide as the time's embedding (DeepFloyd IF)."""

    def __init__(self, encoder_dim: int, time_embed_dim: int, num_heads: int = 64) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(encoder_dim)
        self.pool = AttentionPooling(num_heads, encoder_dim)
        self.proj = nn.Linear(encoder_dim, time_embed_dim)
        self.norm2 = nn.LayerNorm(time_embed_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(hidden_states))))


class TextImageTimeEmbedding(nn.Module):
    """A text's vector, projected and normalised, plus a picture's, projected (Kandinsky 2.1)."""

    def __init__(self, text_embed_dim: int, image_embed_dim: int, time_embed_dim: int) -> None:
        super().__init__()
        self.text_proj = nn.Linear(text_embed_dim, time_embed_dim)
        self.text_norm = nn.LayerNorm(time_embed_dim)
        self.image_proj = nn.Linear(image_embed_dim, time_embed_dim)

    def forward(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        return self.image_proj(image_embeds) + self.text_norm(self.text_proj(text_embeds))


class ImageTimeEmbedding(nn.Module):
    """A picture's vector, projected and normalised (Kandinsky 2.2)."""

    def __init__(self, image_embed_dim: int, time_embed_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(image_embed_dim, time_embed_dim)
        self.image_norm = nn.LayerNorm(time_embed_dim)

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        return self.image_norm(self.image_proj(image_embeds))


class ImageHintTimeEmbedding(nn.Module):
    """:class:`ImageTimeEmbedding`, and a hint picture (batch, 3, 8h, 8w) made into 4 channels (batch, 4, h, w)."""

    def __init__(self, image_embed_dim: int, time_embed_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(image_embed_dim, time_embed_dim)
        self.image_norm = nn.LayerNorm(time_embed_dim)
        widths = (3, 16, 16, 32, 32, 96, 96, 256)
        halving = (32, 96, 256)  # the first convolution of each of these widths has stride 2
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            stride = 2 if after in halving and after != before else 1
            layers += [nn.Conv2d(before, after, kernel_size=3, padding=1, stride=stride), nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers, nn.Conv2d(widths[-1], 4, kernel_size=3, padding=1))

    def forward(self, image_embeds: torch.Tensor, hint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image_norm(self.image_proj(image_embeds)), self.input_hint_block(hint)
