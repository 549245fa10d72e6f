"""Perturbed attention (https://arxiv.org/abs/2403.17377): some layers see by identity for a part of the batch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.attention import Attention


@dataclass(frozen=True)
class Perturbation:
    """Which ``layers`` are perturbed, for the last of ``parts`` equal parts of the batch.

    It goes with a call, as ``cross_attention_kwargs={"perturbation": …}``, and changes nothing in the model.
    """

    layers: frozenset[nn.Module]
    parts: int

    def concerns(self, layer: nn.Module) -> bool:
        """Whether this layer is perturbed."""
        return layer in self.layers

    def split(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that are computed in the ordinary way, and those that are perturbed."""
        first = len(batch) - len(batch) // self.parts
        return batch[:first], batch[first:]


def self_attention(model: nn.Module, names: Iterable[str]) -> frozenset[nn.Module]:
    """The self-attention layers that one of ``names`` finds: a part of the layer's name, or a regular expression.

    A number at the end of a name is not taken for the number of the layer itself. Raises ``InputError`` for a name that
    finds none.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile or acceleration wraps
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Attention) and not layer.is_cross_attention
    }
    found: set[nn.Module] = set()
    for wanted in names:
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise InputError(
                f"{wanted!r} is no name and no regular expression for layers: {error}."
            ) from None
        hits = {layer for name, layer in layers.items() if pattern.search(name) and not _number(wanted, name)}
        if not hits:
            some = ", ".join(list(layers)[:3])
            raise InputError(
                f"No self-attention layer of {type(model).__name__} is called {wanted!r}; it has {len(layers)}"
                + (f", such as {some}." if layers else ".")
            )
        found |= hits
    return frozenset(found)


def _number(wanted: str, name: str) -> bool:
    last = wanted.rpartition(".")[2]
    return last.isnumeric() and last == name.rpartition(".")[2]
