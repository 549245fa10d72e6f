"""Text through a CLIP text model: tokens, the chosen hidden layer, and a warning for what does not fit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch

from calotype.core.errors import InputError

logger = logging.getLogger(__name__)

_TOKENIZING = threading.Lock()
"""A tokenizer of transformers keeps padding and cutting as its own state: two threads must not use one at once."""


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> Any:
    """Token ids and attention mask (batch, length), padded and cut."""
    with _TOKENIZING:
        return tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )


def warn_of_cut(tokenizer: Any, texts: Sequence[str], length: int) -> None:
    """Log the words of each text that lie past the ``length`` tokens which the encoder reads."""
    with _TOKENIZING:
        whole = tokenizer(list(texts)).input_ids
    for text, ids in zip(texts, whole, strict=True):
        if len(ids) > length:
            # the last token that is read is the end mark, so the text is cut one token earlier
            cut = tokenizer.decode(ids[length - 1 : -1])
            logger.warning("The text encoder reads %d tokens; this part of %r is cut: %r", length, text, cut)


def encode(
    encoder: Any, tokenizer: Any, texts: Sequence[str], length: int, clip_skip: int | None = None
) -> torch.Tensor:
    """Hidden states (batch, length, channels) of a CLIP text model, on its device.

    ``clip_skip`` counts layers back from the last; the final layer norm is applied in either case. Raises
    ``InputError`` when the encoder has no such layer.
    """
    tokens = tokenize(tokenizer, texts, length)
    masked = getattr(encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(encoder.device) if masked else None
    ids = tokens.input_ids.to(encoder.device)
    if clip_skip is None:
        return encoder(ids, attention_mask=mask)[0]
    layers = encoder.config.num_hidden_layers
    if clip_skip > layers:
        raise InputError(f"clip_skip is {clip_skip}, but the text encoder has only {layers} layers to skip.")
    hidden = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
    # the model's own layers stood under `text_model` before transformers 5
    return getattr(encoder, "text_model", encoder).final_layer_norm(hidden)


def encode_penultimate(
    encoder: Any, tokenizer: Any, texts: Sequence[str], length: int, clip_skip: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden states before the last layer (batch, length, channels), and the pooled output (batch, channels) if any.

    ``clip_skip`` counts further layers back; no final norm is applied. Raises ``InputError`` when there is no such
    layer.
    """
    back = 2 + (clip_skip or 0)
    layers = encoder.config.num_hidden_layers
    if back > layers + 1:
        raise InputError(f"clip_skip is {clip_skip}, but the text encoder has only {layers} layers.")
    output = encoder(
        tokenize(tokenizer, texts, length).input_ids.to(encoder.device), output_hidden_states=True
    )
    return output.hidden_states[-back], output[0] if output[0].ndim == 2 else None


def encode_pooled(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The last layer's states before the final norm (batch, length, channels), and the pooled output."""
    ids = tokenize(tokenizer, texts, tokenizer.model_max_length).input_ids.to(encoder.device)
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-1], output.pooler_output
