"""The prior of unCLIP: a causal transformer that predicts an image's CLIP embedding.

https://arxiv.org/abs/2204.06125, section 2.2; used by Karlo, Kandinsky 2 and Shap-E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.modeling import ModelMixin
from calotype.nn.embeddings import TimestepEmbedding, Timesteps
from calotype.nn.transformer import BasicTransformerBlock

HIDDEN = -10000.0
"""Added to the scores of what must not be seen: published priors were trained with this in place of infinity."""


@dataclass
class PriorTransformerOutput(BaseOutput):
    """``predicted_image_embedding``: (batch, clip_embed_dim)."""

    predicted_image_embedding: torch.Tensor


class PriorTransformer(AdapterAccess, AttentionAccess, ModelMixin):
    """Tokens of the text, of the projected embedding, of the time and of the noisy embedding, read in this order.

    ``added_emb_type="prd"`` appends a learned token, at whose place the prediction is read; None reads it at the
    places of the noisy tokens. ``encoder_hid_proj_type`` ("linear" or None) says whether text tokens are projected;
    ``norm_in_type`` and ``embedding_proj_norm_type`` ("layer" or None) are norms before the blocks and on the
    projected embedding. ``num_embeddings`` tokens have positions, and ``additional_embeddings`` more.
    """

    _adapted_as = "prior"
    _repeated_blocks = ("BasicTransformerBlock",)

    def __init__(
        self,
        num_attention_heads: int = 32,
        attention_head_dim: int = 64,
        num_layers: int = 20,
        embedding_dim: int = 768,
        num_embeddings: int = 77,
        additional_embeddings: int = 4,
        dropout: float = 0.0,
        time_embed_act_fn: str = "silu",
        norm_in_type: str | None = None,
        embedding_proj_norm_type: str | None = None,
        encoder_hid_proj_type: str | None = "linear",
        added_emb_type: str | None = "prd",
        time_embed_dim: int | None = None,
        embedding_proj_dim: int | None = None,
        clip_embed_dim: int | None = None,
    ) -> None:
        super().__init__()
        _one_of("norm_in_type", norm_in_type, "layer")
        _one_of("embedding_proj_norm_type", embedding_proj_norm_type, "layer")
        _one_of("encoder_hid_proj_type", encoder_hid_proj_type, "linear")
        _one_of("added_emb_type", added_emb_type, "prd")
        width = num_attention_heads * attention_head_dim
        projected = embedding_proj_dim or embedding_dim
        target = clip_embed_dim or embedding_dim

        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(
            width, time_embed_dim or width, act_fn=time_embed_act_fn, out_dim=width
        )
        self.proj_in = nn.Linear(embedding_dim, width)
        self.embedding_proj_norm = nn.LayerNorm(projected) if embedding_proj_norm_type else None
        self.embedding_proj = nn.Linear(projected, width)
        self.encoder_hidden_states_proj = nn.Linear(embedding_dim, width) if encoder_hid_proj_type else None
        self.positional_embedding = nn.Parameter(
            torch.zeros(1, num_embeddings + additional_embeddings, width)
        )
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, width)) if added_emb_type else None
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                width,
                num_attention_heads,
                attention_head_dim,
                dropout=dropout,
                activation_fn="gelu",
                attention_bias=True,
            )
            for _ in range(num_layers)
        )
        self.norm_in = nn.LayerNorm(width) if norm_in_type else None
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_clip_embeddings = nn.Linear(width, target)
        self.clip_mean = nn.Parameter(torch.zeros(1, target))
        self.clip_std = nn.Parameter(torch.zeros(1, target))

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor | float | int,
        proj_embedding: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> PriorTransformerOutput | tuple[torch.Tensor]:
        """The prediction for noisy embeddings ``hidden_states``: (batch, embedding_dim) or (batch, n, embedding_dim).

        ``proj_embedding`` (batch, embedding_proj_dim) is what the embedding is of, such as the text's; there may be
        several, (batch, m, embedding_proj_dim). ``encoder_hidden_states`` (batch, num_embeddings, embedding_dim) are
        the text's tokens, and ``attention_mask`` (batch, num_embeddings) is 1 or True for those that count. With a
        mask the tokens see none after them.
        """
        time = torch.as_tensor(timestep, device=hidden_states.device).expand(hidden_states.shape[0])
        time_token = self.time_embedding(self.time_proj(time).to(self.dtype))[:, None]
        before = [
            *self._text_tokens(encoder_hidden_states),
            self._projected(proj_embedding),
            time_token,
        ]
        noisy = self.proj_in(hidden_states)
        noisy = noisy[:, None] if noisy.ndim == 2 else noisy
        after = (
            [] if self.prd_embedding is None else [self.prd_embedding.to(noisy).expand(len(noisy), -1, -1)]
        )
        first = sum(part.shape[1] for part in before)
        tokens = torch.cat([*before, noisy, *after], dim=1)

        positions = self.positional_embedding.to(tokens)
        if positions.shape[1] < tokens.shape[1]:  # they are then of the noisy tokens alone
            positions = F.pad(positions, (0, 0, first, len(after)))
        if positions.shape[1] != tokens.shape[1]:
            raise InputError(
                f"PriorTransformer has {self.positional_embedding.shape[1]} positions and was given "
                f"{tokens.shape[1]} tokens ({first} before the noisy ones); num_embeddings and "
                f"additional_embeddings must add up to them."
            )
        tokens = tokens + positions
        bias = None if attention_mask is None else self._causal_bias(attention_mask, tokens)
        if self.norm_in is not None:
            tokens = self.norm_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, attention_mask=bias)
        tokens = self.norm_out(tokens)
        embedding = self.proj_to_clip_embeddings(tokens[:, first:] if not after else tokens[:, -1])
        return PriorTransformerOutput(predicted_image_embedding=embedding) if return_dict else (embedding,)

    def post_process_latents(self, prior_latents: torch.Tensor) -> torch.Tensor:
        """Embeddings as CLIP makes them, from the ones of mean 0 and deviation 1 that are denoised."""
        return prior_latents * self.clip_std + self.clip_mean

    def _text_tokens(self, states: torch.Tensor | None) -> list[torch.Tensor]:
        project = self.encoder_hidden_states_proj
        if states is None:
            if project is not None:
                raise InputError("This PriorTransformer reads text: give it encoder_hidden_states.")
            return []
        return [states if project is None else project(states)]

    def _projected(self, embedding: torch.Tensor) -> torch.Tensor:
        if self.embedding_proj_norm is not None:
            embedding = self.embedding_proj_norm(embedding)
        embedding = self.embedding_proj(embedding)
        return embedding[:, None] if embedding.ndim == 2 else embedding

    def _causal_bias(self, mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What the scores get, (batch, n, n): no token sees a later one or a masked one."""
        count = tokens.shape[1]
        masked = F.pad((1 - mask.to(tokens)) * HIDDEN, (0, count - mask.shape[1]))
        later = tokens.new_full((count, count), HIDDEN).triu(1)
        return masked[:, None] + later


def _one_of(argument: str, value: str | None, known: str) -> None:
    if value is not None and value != known:
        raise InputError(f"{argument}={value!r} is neither {known!r} nor None.")
