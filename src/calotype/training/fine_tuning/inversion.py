"""Textual inversion (https://arxiv.org/abs/2208.01618): the vectors of a new word are trained, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.adapters import words
from calotype.core.errors import InputError
from calotype.core.files import replacing
from calotype.core.tokenizing import TOKENIZING
from calotype.training.fine_tuning.base import Base
from calotype.training.fine_tuning.settings import TextualInversionSettings

FILE = f"{words.STEM}.safetensors"

SAYINGS = {
    "object": (
        "{}", "a {}", "a photo of {}", "a photo of the {}", "a picture of {}", "a close view of {}",
        "a bright photo of the {}", "a dark photo of the {}", "a cropped photo of {}", "one {} in a photo",
        "a good picture of the {}", "a rendering of {}",
    ),
    "style": (
        "{}", "in the style of {}", "a picture in the style of {}", "a painting in the style of {}",
        "a small picture in the style of {}", "a detail of a work in the style of {}", "{} style",
        "an image that looks like {}",
    ),
}  # fmt: skip
"""What is said of the pictures; the word stands for {}."""


def captions(word: str, learned: str) -> list[str]:
    """The sentences with the word, for an ``object`` or a ``style``."""
    return [saying.format(word) for saying in SAYINGS[learned]]


class Word(nn.Module):
    """The vectors [N, C] of the tokens from ``first`` on, in float32, in the place of the table's."""

    def __init__(self, vectors: torch.Tensor, first: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().float().clone())
        self.first = first

    def stand_in(
        self, table: nn.Embedding, args: tuple[torch.Tensor, ...], found: torch.Tensor
    ) -> torch.Tensor:
        """What the table gives for ids [B, L], with these vectors for the word's; a forward hook."""
        place = args[0] - self.first
        own = (place >= 0) & (place < len(self.vectors))
        mine = self.vectors[place.clamp(0, len(self.vectors) - 1)].to(found.dtype)
        return torch.where(own[..., None], mine, found)


class WordObjective(nn.Module):
    """Another objective, whose text encoder knows the word."""

    def __init__(self, objective: nn.Module, word: Word) -> None:
        super().__init__()
        self.objective = objective
        self.word = word

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Any:
        """As the other objective."""
        return self.objective(batch)


def put_in(settings: TextualInversionSettings, base: Base) -> Word:
    """Teach the text encoder the word, beginning at the vector of another, and let its vectors be trained.

    Raises ``InputError`` for SDXL, a word that is there already and a beginning that is not one token.
    """
    if base.xl:
        raise InputError("Textual inversion is for checkpoints with one text encoder, which SDXL's are not.")
    encoder = words.Encoder(base.pipe.tokenizer, base.pipe.text_encoder)
    with TOKENIZING:
        ids = encoder.tokenizer(settings.initializer_token, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise InputError(
            f"The initializer_token {settings.initializer_token!r} is {len(ids)} tokens of this checkpoint's "
            f"tokenizer; choose a word that is one."
        )
    if not settings.placeholder_token.strip() or any(map(str.isspace, settings.placeholder_token)):
        raise InputError(
            f"The placeholder_token {settings.placeholder_token!r} must be a word without spaces."
        )
    vectors = encoder.table.weight[ids].expand(settings.num_vectors, -1)
    tokens = words.names_of(settings.placeholder_token, settings.num_vectors)
    words.check(encoder, tokens, vectors, "The word")
    first = len(encoder.table.weight)
    words.add(encoder, tokens, vectors)
    word = Word(vectors, first).to(base.device)
    encoder.table.register_forward_hook(word.stand_in)
    return word


def write(token: str, word: Word, folder: Path) -> Sequence[str]:
    """Write the vectors under the word's name."""
    from safetensors.torch import save_file

    with replacing(folder / FILE) as temporary:
        save_file(
            {token: word.vectors.detach().cpu().contiguous().clone()}, temporary, metadata={"format": "pt"}
        )
    return [FILE]
