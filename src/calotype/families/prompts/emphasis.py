"""What a weight does to the states of its tokens, as the tools do that the syntaxes come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from calotype.families.prompts.chunks import Chunks, chunked
from calotype.families.prompts.weighting import Fragment, plain

States = tuple[torch.Tensor, torch.Tensor | None]
"""Hidden states (rows, length, channels), and the pooled output (rows, channels) if there is any."""

Read = Callable[[torch.Tensor, torch.Tensor | None], States]
"""(token ids (rows, length), attention mask of that shape or None) -> states."""

LEAST = 1e-5
"""The least weight that compel tells from zero."""


def encoded(
    read: Read,
    tokenizer: Any,
    texts: Sequence[Sequence[Fragment]],
    *,
    syntax: str | None,
    length: int,
    count: int,
    device: torch.device,
    masks_padding: bool = False,
) -> States:
    """States (texts, ``count``·``length``, channels) of weighted texts, and the pooled output of their first chunks."""
    chunks = chunked(tokenizer, texts, length, count, device)
    mask = chunks.attended.flatten(0, 1) if masks_padding else None
    states, pooled = read(chunks.ids.flatten(0, 1), mask)
    if syntax == "a1111":
        states = mean_restored(states, chunks.weights.flatten(0, 1))
    elif syntax == "compel":
        empty, _ = read(*_rows(chunked(tokenizer, [plain("")], length, 1, device), masks_padding))
        states = from_empty(states, chunks.weights.flatten(0, 1), empty)
        states = without_the_light(read, chunks, texts, states, empty)
    whole = states.unflatten(0, (len(texts), count)).flatten(1, 2)
    return whole, None if pooled is None else pooled.unflatten(0, (len(texts), count))[:, 0]


def mean_restored(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Each token's states times its weight, and each row brought back to the mean that it had.

    This is the emphasis of AUTOMATIC1111's web UI; there the mean is that of a batch, here that of a row, so that a
    prompt's states do not depend on its neighbours.
    """
    weighted = states.float() * weights[..., None]
    axes = (1, 2)
    ratio = states.float().mean(axes, keepdim=True) / weighted.mean(axes, keepdim=True)
    untouched = (weights == 1).all(1)[:, None, None]
    return torch.where(untouched, states, (weighted * ratio).to(states.dtype))


def from_empty(states: torch.Tensor, weights: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """z_∅ + w·(z − z_∅) with the states z_∅ of the empty text: compel's weights."""
    moved = torch.lerp(empty.float(), states.float(), weights[..., None]).to(states.dtype)
    return torch.where((weights == 1)[..., None], states, moved)


def without_the_light(
    read: Read,
    chunks: Chunks,
    texts: Sequence[Sequence[Fragment]],
    states: torch.Tensor,
    empty: torch.Tensor,
) -> torch.Tensor:
    """The states moved toward those of the prompt in which fragments lighter than 1 are masked out: compel's blend.

    A fragment of weight w has the share tan((1 − w)·π/2) against a share of 1 of the whole prompt.
    """
    by_text = states.unflatten(0, chunks.ids.shape[:2]).clone()
    for row, fragments in enumerate(texts):
        light = {number: f.weight for number, f in enumerate(fragments) if f.weight < 1 and f.text.strip()}
        if not light:
            continue
        total, shares = by_text[row].float(), 1.0
        for number, weight in light.items():
            masked, _ = read(chunks.ids[row], (chunks.fragments[row] != number).long())
            share = math.tan((1 - max(weight, LEAST)) * math.pi / 2)
            total = total + share * from_empty(masked, chunks.weights[row], empty).float()
            shares += share
        by_text[row] = (total / shares).to(states.dtype)
    return by_text.flatten(0, 1)


def _rows(chunks: Chunks, masks_padding: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    return chunks.ids.flatten(0, 1), chunks.attended.flatten(0, 1) if masks_padding else None
