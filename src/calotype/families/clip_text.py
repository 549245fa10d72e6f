"""Text through a CLIP text model: tokens, the chosen hidden layer, and a warning for what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from calotype.core.errors import InputError
from calotype.core.tokenizing import TOKENIZING, written_out
from calotype.core.transfer import sent
from calotype.diffusion.inputs import Prompt
from calotype.diffusion.limits import limits
from calotype.families.prompts.chunks import spans
from calotype.families.prompts.emphasis import Read, States, encoded
from calotype.families.prompts.weighting import SYNTAXES

logger = logging.getLogger(__name__)


CHUNKS = " Pass prompt_chunks=True to encode it all."
"""What to do about a text that is cut, where a family takes that argument."""


@dataclass(frozen=True)
class Layout:
    """How texts that are not just cut are read: the syntax of their weights, and the chunks that all of them get."""

    syntax: str | None
    count: int


class Reading(NamedTuple):
    """Texts for one text encoder."""

    tokenizer: Any
    encoder: Any
    texts: Sequence[str]


def layout(subject: Prompt, *readings: Reading) -> Layout | None:
    """The layout that ``subject`` asks for, as long as the longest text of ``readings`` needs.

    None where texts are cut at what the encoder reads. Raises ``InputError`` where given embeddings have fewer chunks
    than a text that goes with them.
    """
    if not subject.prompt_chunks and subject.prompt_weighting is None:
        return None
    parse = SYNTAXES[subject.prompt_weighting]
    count = 1
    for tokenizer, _, texts in readings:
        if not texts:
            continue
        length = tokenizer.model_max_length
        count = max(count, *(len(spans(tokenizer, parse(text), length)) for text in texts))
        for embeds in (subject.prompt_embeds, subject.negative_prompt_embeds):
            given = None if embeds is None else embeds.shape[1] // length
            if given is not None and given < count:
                raise InputError(
                    f"A text needs {count} chunks of {length} tokens and the embeddings beside it have {given}; give "
                    f"both as texts or both as embeddings."
                )
            count = given or count
        limits().check("tokens", count * length, f"A prompt of {count} chunks of {length} tokens")
    return Layout(subject.prompt_weighting, count)


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> Any:
    """Token ids and attention mask (batch, length), padded and cut."""
    with TOKENIZING:
        written = [written_out(tokenizer, text) for text in texts]
        return tokenizer(
            written, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )


def warn_of_cut(tokenizer: Any, texts: Sequence[str], length: int, remedy: str = "") -> None:
    """Log the words of each text that lie past the ``length`` tokens which the encoder reads, and a ``remedy``."""
    if not texts:
        return
    with TOKENIZING:
        whole = tokenizer([written_out(tokenizer, text) for text in texts], verbose=False).input_ids
    for text, ids in zip(texts, whole, strict=True):
        if len(ids) > length:
            # the last token that is read is the end mark, so the text is cut one token earlier
            cut = tokenizer.decode(ids[length - 1 : -1])
            logger.warning(
                "The text encoder reads %d tokens; this part of %r is cut: %r.%s", length, text, cut, remedy
            )


def encode(
    encoder: Any,
    tokenizer: Any,
    texts: Sequence[str],
    length: int,
    clip_skip: int | None = None,
    laid: Layout | None = None,
    remedy: str | None = None,
) -> torch.Tensor:
    """Hidden states (batch, length, channels) of a CLIP text model, on its device; longer as ``laid`` says.

    ``clip_skip`` counts layers back from the last; the final layer norm is applied in either case. With a ``remedy``
    what is cut is named. Raises ``InputError`` when the encoder has no such layer.
    """
    layers = encoder.config.num_hidden_layers
    if clip_skip is not None and clip_skip > layers:
        raise InputError(f"clip_skip is {clip_skip}, but the text encoder has only {layers} layers to skip.")

    def read(ids: torch.Tensor, mask: torch.Tensor | None) -> States:
        if clip_skip is None:
            return encoder(ids, attention_mask=mask)[0], None
        hidden = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        # the model's own layers stood under `text_model` before transformers 5
        return getattr(encoder, "text_model", encoder).final_layer_norm(hidden), None

    masks_padding = getattr(encoder.config, "use_attention_mask", False) or False
    return _states(encoder, tokenizer, read, texts, length, laid, remedy, masks_padding)[0]


def encode_penultimate(
    encoder: Any,
    tokenizer: Any,
    texts: Sequence[str],
    length: int,
    clip_skip: int | None = None,
    laid: Layout | None = None,
    remedy: str | None = None,
) -> States:
    """Hidden states before the last layer (batch, length, channels), and the pooled output (batch, channels) if any.

    ``clip_skip`` counts further layers back; no final norm is applied. Of texts that are ``laid`` out in chunks the
    first is pooled. With a ``remedy`` what is cut is named. Raises ``InputError`` when there is no such layer.
    """
    back = 2 + (clip_skip or 0)
    layers = encoder.config.num_hidden_layers
    if back > layers + 1:
        raise InputError(f"clip_skip is {clip_skip}, but the text encoder has only {layers} layers.")

    def read(ids: torch.Tensor, mask: torch.Tensor | None) -> States:
        output = encoder(ids, attention_mask=mask, output_hidden_states=True)
        return output.hidden_states[-back], output[0] if output[0].ndim == 2 else None

    return _states(encoder, tokenizer, read, texts, length, laid, remedy)


def encode_side_by_side(
    readings: Sequence[Reading], length: int | None, clip_skip: int | None, laid: Layout | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What several encoders make of their texts before their last layer, and the pooled output of the last encoder.

    Texts are cut at ``length``; without one, and unless they are ``laid`` out, at what each encoder reads, and what is
    cut is named.
    """
    states, pooled = [], None
    remedy = CHUNKS if length is None else None
    for tokenizer, encoder, texts in readings:
        hidden, pooled = encode_penultimate(
            encoder, tokenizer, texts, length or tokenizer.model_max_length, clip_skip, laid, remedy
        )
        states.append(hidden)
    assert pooled is not None
    return torch.cat(states, dim=-1), pooled


def encode_pooled(
    encoder: Any, tokenizer: Any, texts: Sequence[str], laid: Layout | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last layer's states before the final norm (batch, length, channels), and the pooled output."""

    def read(ids: torch.Tensor, mask: torch.Tensor | None) -> States:
        output = encoder(ids, attention_mask=mask, output_hidden_states=True)
        return output.hidden_states[-1], output.pooler_output

    states, pooled = _states(encoder, tokenizer, read, texts, tokenizer.model_max_length, laid)
    assert pooled is not None
    return states, pooled


def _states(
    encoder: Any,
    tokenizer: Any,
    read: Read,
    texts: Sequence[str],
    length: int,
    laid: Layout | None,
    remedy: str | None = None,
    masks_padding: bool = False,
) -> States:
    """Texts as ``read`` sees them: cut at ``length``, named with a ``remedy``, or all of them as ``laid`` out."""
    if laid is None:
        tokens, place = tokenize(tokenizer, texts, length), encoder.device
        if remedy is not None:
            filled = tokens.attention_mask.all(dim=1).tolist()  # only such texts can have been cut
            warn_of_cut(
                tokenizer, [text for text, full in zip(texts, filled, strict=True) if full], length, remedy
            )
        mask = sent(tokens.attention_mask, place) if masks_padding else None
        return read(sent(tokens.input_ids, place), mask)
    parse = SYNTAXES[laid.syntax]
    return encoded(
        read,
        tokenizer,
        [parse(text) for text in texts],
        syntax=laid.syntax,
        length=tokenizer.model_max_length,
        count=laid.count,
        device=encoder.device,
        masks_padding=masks_padding,
    )
