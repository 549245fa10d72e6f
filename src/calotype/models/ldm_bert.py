"""The text encoder of latent diffusion: a transformer trained with the diffusion model (arXiv:2112.10752)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from calotype.nn.activations import activation


class LDMBertConfig(PretrainedConfig):
    """The sizes of the encoder, under their names in files."""

    model_type = "ldmbert"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_attention_heads": "encoder_attention_heads",
        "hidden_size": "d_model",
    }

    def __init__(
        self,
        vocab_size: int = 30522,
        max_position_embeddings: int = 77,
        encoder_layers: int = 32,
        encoder_ffn_dim: int = 5120,
        encoder_attention_heads: int = 8,
        head_dim: int = 64,
        encoder_layerdrop: float = 0.0,
        activation_function: str = "gelu",
        d_model: int = 1280,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        init_std: float = 0.02,
        classifier_dropout: float = 0.0,
        scale_embedding: bool = False,
        use_cache: bool = True,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.d_model = d_model
        self.encoder_ffn_dim = encoder_ffn_dim
        self.encoder_layers = encoder_layers
        self.num_hidden_layers = encoder_layers
        self.encoder_attention_heads = encoder_attention_heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.activation_function = activation_function
        self.init_std = init_std
        self.encoder_layerdrop = encoder_layerdrop
        self.classifier_dropout = classifier_dropout
        self.use_cache = use_cache
        self.scale_embedding = scale_embedding
        super().__init__(pad_token_id=pad_token_id, **kwargs)  # type: ignore[call-arg]


class _SelfAttention(nn.Module):
    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        inner = config.encoder_attention_heads * config.head_dim
        self.heads, self.dropout = config.encoder_attention_heads, config.attention_dropout
        self.k_proj = nn.Linear(config.d_model, inner, bias=False)
        self.v_proj = nn.Linear(config.d_model, inner, bias=False)
        self.q_proj = nn.Linear(config.d_model, inner, bias=False)
        self.out_proj = nn.Linear(inner, config.d_model)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """Self-attention and two matrices, each after a norm and added to its input."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout
        self.self_attn = _SelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.activation_fn = activation(config.activation_function)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        attended = self.self_attn(self.self_attn_layer_norm(x), bias)
        x = x + F.dropout(attended, self.dropout, self.training)
        inside = self.activation_fn(self.fc1(self.final_layer_norm(x)))
        inside = F.dropout(inside, self.activation_dropout, self.training)
        return x + F.dropout(self.fc2(inside), self.dropout, self.training)


class _Encoder(nn.Module):
    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embed_tokens(ids) + self.embed_positions(positions)
        x = F.dropout(x, self.dropout, self.training)
        bias = None if mask is None else mask.bool()[:, None, None]
        for layer in self.layers:
            x = layer(x, bias)
        return self.layer_norm(x)


class LDMBertModel(PreTrainedModel):
    """Tokens to states that the denoiser attends to; ``to_logits`` is what is left of its training."""

    config_class = LDMBertConfig
    base_model_prefix = "model"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = _Encoder(config)
        self.to_logits = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[torch.Tensor]:
        """The states (batch, tokens, d_model) of ``input_ids`` (batch, tokens).

        ``attention_mask`` is 1 for tokens that may be attended to; pipelines leave it out, as in training.
        """
        states = self.model(input_ids, attention_mask)
        return (states,) if return_dict is False else BaseModelOutput(last_hidden_state=states)
