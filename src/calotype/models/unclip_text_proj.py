"""How unCLIP's decoder is told texts and a picture's embedding (arXiv:2204.06125, section 2.1; Karlo)."""

from __future__ import annotations

import torch
from torch import nn

from calotype.models.modeling import ModelMixin


class UnCLIPTextProjModel(ModelMixin):
    """Embeddings as an addition to the time's, and as tokens before those of the text.

    ``learned_classifier_free_guidance_embeddings`` stands for the picture's embedding where the decoder is told none.
    """

    def __init__(
        self,
        *,
        clip_extra_context_tokens: int = 4,
        clip_embeddings_dim: int = 768,
        time_embed_dim: int,
        cross_attention_dim: int,
    ) -> None:
        super().__init__()
        self.clip_extra_context_tokens = clip_extra_context_tokens
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.zeros(clip_embeddings_dim))
        self.embedding_proj = nn.Linear(clip_embeddings_dim, time_embed_dim)
        self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(clip_embeddings_dim, time_embed_dim)
        self.clip_extra_context_tokens_proj = nn.Linear(
            clip_embeddings_dim, clip_extra_context_tokens * cross_attention_dim
        )
        self.encoder_hidden_states_proj = nn.Linear(clip_embeddings_dim, cross_attention_dim)
        self.text_encoder_hidden_states_norm = nn.LayerNorm(cross_attention_dim)

    def forward(
        self,
        *,
        image_embeddings: torch.Tensor,
        prompt_embeds: torch.Tensor,
        text_encoder_hidden_states: torch.Tensor,
        do_classifier_free_guidance: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (batch, extra + n, cross_attention_dim), and what is added to the time (batch, time_embed_dim).

        ``prompt_embeds`` (batch, clip_embeddings_dim) and ``text_encoder_hidden_states`` (batch, n, …) are the texts',
        ``image_embeddings`` the pictures'; with ``do_classifier_free_guidance`` they are those of the second half of
        the batch, and the first half is told no picture.
        """
        if do_classifier_free_guidance:
            nothing = self.learned_classifier_free_guidance_embeddings.expand_as(image_embeddings)
            image_embeddings = torch.cat([nothing, image_embeddings])
        time = self.clip_image_embeddings_project_to_time_embeddings(image_embeddings)
        time = time + self.embedding_proj(prompt_embeds)
        extra = self.clip_extra_context_tokens_proj(image_embeddings)
        # a channel's values for all tokens lie side by side
        extra = extra.unflatten(1, (-1, self.clip_extra_context_tokens)).transpose(1, 2)
        text = self.text_encoder_hidden_states_norm(
            self.encoder_hidden_states_proj(text_encoder_hidden_states)
        )
        return torch.cat([extra, text], dim=1), time
