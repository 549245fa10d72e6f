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
        if isinstance(out_dim, list | tuple):
            out_dim = out_dim[0]

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
