"""From an encoder's view of a picture to the tokens that attention reads (IP-Adapter, arXiv:2308.06721).

Attribute names are the keys of published files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.image_prompt import ImagePrompts, Scale, adapter_masks

EMBEDS, STATES, FACE = "embeds", "states", "face"
"""What a projection reads: CLIP's embedding (channels), its states of the patches before the last layer (patches,
channels), or another model's embedding of a face (channels)."""


class EmbeddingTokens(nn.Module):
    """The first IP-Adapters: an embedding (batch, channels) made into ``tokens`` by one matrix, normalised."""

    reads: ClassVar[str] = EMBEDS

    def __init__(self, embed_dim: int, context_dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(embed_dim, tokens * context_dim)
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(embeds).unflatten(-1, (self.tokens, -1)))


class PatchTokens(nn.Module):
    """Full-Face: a token for each patch (batch, patches, channels)."""

    reads: ClassVar[str] = STATES

    def __init__(self, state_dim: int, hidden_dim: int, context_dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(state_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, context_dim),
            nn.LayerNorm(context_dim),
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.proj(states)


class FaceTokens(nn.Module):
    """FaceID: a face's embedding (batch, channels) made into ``tokens`` by a small network, normalised."""

    reads: ClassVar[str] = FACE

    def __init__(self, embed_dim: int, hidden_dim: int, context_dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Sequential(
            nn.Linear(embed_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, tokens * context_dim)
        )
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(embeds).unflatten(-1, (self.tokens, -1)))


class PerceiverAttention(nn.Module):
    """Latents attend to a picture's states and to each other (Flamingo, arXiv:2204.14198)."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_dim
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        own = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(states), own], dim=1)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(own), k, v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceiver(nn.Module):
    """Latents that look at a picture's states (batch, patches, channels), layer by layer, and become tokens.

    By itself, with so many learned ``tokens``, it is the projection of Plus and Plus-Face; else it is given latents.
    """

    reads: ClassVar[str] = STATES

    def __init__(
        self,
        state_dim: int,
        dim: int,
        context_dim: int,
        depth: int,
        heads: int,
        head_dim: int,
        hidden_dim: int,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.latents: nn.Parameter | None = None
        if tokens is not None:
            self.latents = nn.Parameter(torch.randn(1, tokens, dim) / dim**0.5)
        self.proj_in = nn.Linear(state_dim, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, heads, head_dim), _feed_forward(dim, hidden_dim)])
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, context_dim)
        self.norm_out = nn.LayerNorm(context_dim)

    def forward(self, states: torch.Tensor, latents: torch.Tensor | None = None) -> torch.Tensor:
        if latents is None:
            assert self.latents is not None
            latents = self.latents.expand(len(states), -1, -1)
        states = self.proj_in(states)
        layers: Any = self.layers
        for attend, feed in layers:
            latents = latents + attend(states, latents)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))


def _feed_forward(dim: int, hidden_dim: int) -> nn.Module:
    into, out = nn.Linear(dim, hidden_dim, bias=False), nn.Linear(hidden_dim, dim, bias=False)
    return nn.Sequential(nn.LayerNorm(dim), into, nn.GELU(), out)


class FaceTokensThatLook(nn.Module):
    """FaceID-Plus: a face's embedding as tokens, which look at the patches of a picture of it.

    The states of the patches, (batch, pictures, patches, channels), are set as ``clip_embeds``; with ``shortcut`` (v2)
    what they see, times ``shortcut_scale``, is added to the tokens.
    """

    reads: ClassVar[str] = FACE

    def __init__(self, face: FaceTokens, perceiver: Perceiver) -> None:
        super().__init__()
        self.tokens = face.tokens
        self.proj, self.norm = face.proj, face.norm
        self.perceiver_resampler = perceiver
        self.clip_embeds: torch.Tensor | None = None
        self.shortcut = False
        self.shortcut_scale = 1.0

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        states = self.clip_embeds
        if states is None:
            raise InputError(
                "A FaceID-Plus adapter reads the picture of the face beside its embedding: set "
                "pipe.unet.encoder_hid_proj.image_projection_layers[0].clip_embeds to the states of "
                "pipe.prepare_ip_adapter_image_embeds."
            )
        face = self.norm(self.proj(embeds).unflatten(-1, (self.tokens, -1)))
        states = states.to(face).flatten(0, -3)
        if len(states) != len(face):
            raise InputError(
                f"clip_embeds of the FaceID-Plus adapter has states for {len(states)} pictures, and there are "
                f"embeddings of {len(face)} faces."
            )
        seen = self.perceiver_resampler(states, face)
        return face + self.shortcut_scale * seen if self.shortcut else seen


class ImageProjections(nn.Module):
    """The projections of the adapters that a UNet has, and how strongly they act unless a call says otherwise.

    It stands in the place of the UNet's ``encoder_hid_proj``; a projection of the ``text`` that was there keeps its
    keys and its use.
    """

    def __init__(
        self, layers: Sequence[nn.Module], scales: Sequence[Mapping[str, Scale]], text: nn.Linear | None
    ) -> None:
        super().__init__()
        self.image_projection_layers = nn.ModuleList(layers)
        self.scales = tuple(scales)
        self.loras: tuple[str, ...] = ()
        """The LoRA adapters that came with these."""
        self.__dict__["text"] = text
        if text is not None:
            self._parameters = text._parameters

    def of_text(self, context: torch.Tensor) -> torch.Tensor:
        """The context (batch, tokens, channels) as the UNet's own projection makes it."""
        text: nn.Linear | None = self.__dict__["text"]
        return context if text is None else text(context)

    def forward(self, image_embeds: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the encoders gave, (batch, pictures, …) for each adapter, as tokens (batch, pictures, n, channels)."""
        layers = self.image_projection_layers
        if isinstance(image_embeds, torch.Tensor) or len(image_embeds) != len(layers):
            raise InputError(
                f"image_embeds must be a list of {len(layers)} tensors, one for each IP-Adapter."
            )
        return tuple(
            layer(given.flatten(0, 1)).unflatten(0, given.shape[:2])
            for layer, given in zip(layers, image_embeds, strict=True)
        )

    def prompts(
        self,
        image_embeds: Sequence[torch.Tensor],
        masks: Any = None,
        scales: Sequence[Mapping[str, Scale]] | None = None,
    ) -> ImagePrompts:
        """What attention reads for a call: the pictures' tokens, the scales (by default this module's) and masks."""
        tokens = self(image_embeds)
        scales = self.scales if scales is None else tuple(scales)
        return ImagePrompts(tokens, scales, adapter_masks(masks, [one.shape[1] for one in tokens], scales))


def image_projections(unet: Any) -> ImageProjections | None:
    """The projections of a UNet's IP-Adapters; None if it has none."""
    found = getattr(unet, "encoder_hid_proj", None)
    return found if isinstance(found, ImageProjections) else None
