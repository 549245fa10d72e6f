"""Tokens of prompts of any length, in chunks of what a text encoder reads at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.core.tokenizing import TOKENIZING, written_out
from calotype.families.prompts.weighting import Fragment

MARK = -1
"""In the place of a fragment's number, for the start and end marks and the padding."""


@dataclass(frozen=True)
class Chunks:
    """Tokens, each chunk between start and end mark, all tensors (texts, chunks, length)."""

    ids: torch.Tensor
    weights: torch.Tensor
    """What each token's states are weighted by."""
    fragments: torch.Tensor
    """The number of the fragment that each token is from, or ``MARK``."""
    attended: torch.Tensor
    """1 up to the end mark, 0 in the padding."""


Token = tuple[int, float, int]
"""Id, weight, number of the fragment."""


def spans(tokenizer: Any, fragments: Sequence[Fragment], length: int) -> list[list[Token]]:
    """The tokens of a text in groups of at most ``length`` - 2; a group more where a fragment ``breaks``."""
    room = length - 2
    with TOKENIZING:
        texts = [written_out(tokenizer, f.text) for f in fragments]
        ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    groups: list[list[Token]] = [[]]
    for number, (fragment, tokens) in enumerate(zip(fragments, ids, strict=True)):
        if fragment.breaks:
            groups.append([])
        for token in tokens:
            if len(groups[-1]) == room:
                groups.append([])
            groups[-1].append((token, fragment.weight, number))
    return groups


def chunked(
    tokenizer: Any, texts: Sequence[Sequence[Fragment]], length: int, count: int, device: torch.device
) -> Chunks:
    """Every text in ``count`` chunks of ``length`` tokens; those that a text does not fill are empty.

    Raises ``InputError`` for a text that needs more.
    """
    ids, weights, numbers, attended = [], [], [], []
    for fragments in texts:
        groups = spans(tokenizer, fragments, length)
        if len(groups) > count:
            raise InputError(
                f"A prompt needs {len(groups)} chunks of {length} tokens, but {count} are given by what it goes with; "
                f"shorten {''.join(f.text for f in fragments)!r}."
            )
        for group in [*groups, *[[]] * (count - len(groups))]:
            padding = length - 2 - len(group)
            ids.append(
                [tokenizer.bos_token_id]
                + [token for token, _, _ in group]
                + [tokenizer.eos_token_id]
                + [tokenizer.pad_token_id] * padding
            )
            weights.append([1.0, *(weight for _, weight, _ in group), *[1.0] * (padding + 1)])
            numbers.append([MARK, *(number for _, _, number in group), *[MARK] * (padding + 1)])
            attended.append([1] * (len(group) + 2) + [0] * padding)
    shape = (len(texts), count, length)

    def placed(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(rows, dtype=dtype, device=device).reshape(shape)

    return Chunks(
        placed(ids, torch.long),
        placed(weights, torch.float32),
        placed(numbers, torch.long),
        placed(attended, torch.long),
    )
