"""Learned words: vectors that stand in a text encoder's table as those of new tokens (https://arxiv.org/abs/2208.01618).

A word of several vectors is a token for each, of which the first has the word's name and the others ``name_1``, ….
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from calotype.adapters.formats.files import find
from calotype.core import hub
from calotype.core.errors import InputError, ModelFilesError, WeightsError
from calotype.core.pickles import read_values
from calotype.core.safetensors_header import read_header
from calotype.core.tensor_files import read_tensors
from calotype.core.tokenizing import TOKENIZING

STEM = "learned_embeds"
"""The name of such files, without the ending."""

UNNAMED = ("emb_params", "clip_l", "clip_g")
"""Keys of files that do not say the word."""

Source = str | os.PathLike[str] | Mapping[str, Any] | torch.Tensor
"""A file, a folder, a Hub repository, what such a file holds, or the vectors themselves."""


class Word(NamedTuple):
    """A word, if the file says it, and its vectors (count, channels) by the key that they stand under."""

    name: str | None
    vectors: Mapping[str, torch.Tensor]
    origin: str


def read(
    source: Source,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    options: hub.HubOptions | None = None,
) -> Word:
    """A word from the file of any of the tools that train them; pickles only for ``use_safetensors=False``.

    Raises ``ModelFilesError`` for a file that is missing or damaged and ``WeightsError`` for one that holds no word.
    """
    if isinstance(source, torch.Tensor):
        return _word({UNNAMED[0]: source}, "The given vectors")
    if isinstance(source, Mapping):
        return _word(source, "The given mapping")
    path = find(source, weight_name, subfolder, use_safetensors, options or hub.HubOptions(), (STEM,))
    if path.suffix == ".safetensors":
        return _word(dict(read_tensors(path, read_header(path), lambda _, tensor: tensor)), str(path))
    if use_safetensors is False:
        return _word(read_values(path), str(path))
    raise ModelFilesError(
        f"{path} is a pickle, which may be made to run code when it is loaded: pass use_safetensors=False if you trust "
        f"where it comes from."
    )


def _word(content: Any, origin: str) -> Word:
    name = None
    if isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping):
        name, content = content.get("name"), {UNNAMED[0]: content["string_to_param"].get("*")}
    tensors = (
        {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if len(tensors) == 1 and next(iter(tensors)) not in UNNAMED:
        name = next(iter(tensors))
    elif not tensors or any(key not in UNNAMED for key in tensors):
        keys = (
            ", ".join(map(str, list(content)[:4])) if isinstance(content, Mapping) else type(content).__name__
        )
        raise WeightsError(f"{origin} holds no learned word: there is {keys or 'nothing'}.")
    vectors = {key: tensor.detach().reshape(-1, tensor.shape[-1]) for key, tensor in tensors.items()}
    return Word(name, vectors, origin)


class Encoder(NamedTuple):
    """A text encoder and the tokenizer whose ids it reads."""

    tokenizer: Any
    model: Any

    @property
    def table(self) -> nn.Embedding:
        """The vectors of all tokens (count, channels)."""
        return self.model.get_input_embeddings()


def check(encoder: Encoder, tokens: Sequence[str], vectors: torch.Tensor, origin: str) -> None:
    """``WeightsError`` for vectors of another width, ``InputError`` for a token or a table that cannot be."""
    count, width = encoder.table.weight.shape
    if vectors.shape[-1] != width:
        raise WeightsError(
            f"{origin} has vectors of {vectors.shape[-1]} channels and {type(encoder.model).__name__} has {width}: "
            f"the word was learned with another model."
        )
    vocabulary = encoder.tokenizer.get_vocab()
    if taken := [token for token in tokens if token in vocabulary]:
        raise InputError(
            f"The token {taken[0]!r} is already in the tokenizer's vocabulary; give another with token='…', or unload "
            f"the word of this name first."
        )
    if len(encoder.tokenizer) != count:
        raise InputError(
            f"The tokenizer has {len(encoder.tokenizer)} tokens and the text encoder's table {count}: they do not "
            f"belong together, so no word can be added."
        )


@torch.no_grad()
def add(encoder: Encoder, tokens: Sequence[str], vectors: torch.Tensor) -> None:
    """Add a token for each of ``vectors``, at the end of vocabulary and table."""
    table = encoder.table
    rows = vectors.to(table.weight.device, table.weight.dtype)
    with TOKENIZING:
        encoder.tokenizer.add_tokens(list(tokens))
    _set_table(encoder, torch.cat([table.weight, rows]))


def learned(tokenizer: Any) -> tuple[str, ...]:
    """The tokens that were added to a tokenizer and are no marks, in the order of their ids."""
    marks = set(tokenizer.all_special_tokens)
    added = sorted(getattr(tokenizer, "added_tokens_encoder", {}).items(), key=lambda entry: entry[1])
    return tuple(token for token, _ in added if token not in marks)


def with_all_vectors(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """The tokens of words: their own, and those of their further vectors. ``InputError`` for an unknown word."""
    known = learned(tokenizer)
    found = []
    for word in words:
        if word not in known:
            raise InputError(f"There is no learned word {word!r}; there are {', '.join(known) or 'none'}.")
        found += [word, *_further(word, known)]
    return list(dict.fromkeys(found))


@torch.no_grad()
def remove(encoder: Encoder, tokens: Sequence[str]) -> None:
    """Take tokens out of vocabulary and table; those that stay close up."""
    ids = {token: encoder.tokenizer.convert_tokens_to_ids(token) for token in learned(encoder.tokenizer)}
    weight = encoder.table.weight
    kept = {token: weight[row].clone() for token, row in ids.items() if token not in tokens}
    before = min(ids.values())
    with TOKENIZING:
        _forget(encoder.tokenizer, list(ids))
        if kept:
            encoder.tokenizer.add_tokens(list(kept))
    _set_table(encoder, torch.cat([weight[:before], *(row[None] for row in kept.values())]))


def _set_table(encoder: Encoder, weight: torch.Tensor) -> None:
    table = encoder.table
    table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(weight)
    encoder.model.config.vocab_size = len(weight)


def _forget(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Take added tokens out of a tokenizer, which the libraries have no call for."""
    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] not in tokens]
        tokenizer._tokenizer = type(backend).from_str(json.dumps(state))
        return
    for token in tokens:
        number = tokenizer._added_tokens_encoder.pop(token)
        tokenizer._added_tokens_decoder.pop(number)
    tokenizer._update_trie()
    tokenizer._update_total_vocab_size()


def _further(word: str, known: Sequence[str]) -> Iterator[str]:
    number = 1
    while (token := f"{word}_{number}") in known:
        yield token
        number += 1


def names_of(word: str, count: int) -> list[str]:
    """The tokens of a word with so many vectors."""
    return [word, *(f"{word}_{number}" for number in range(1, count))]
