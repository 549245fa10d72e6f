"""LoRA weights (https://arxiv.org/abs/2106.09685) that are trained, in the library's own adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import nn

from calotype.adapters import model as adapters
from calotype.adapters.updates import LowRank, Update
from calotype.core.errors import InputError


def add_trainable(model: nn.Module, name: str, layers: Iterable[str], rank: int) -> None:
    """Give linear layers and convolutions of ``model`` an adapter that changes nothing yet and is trained.

    Of a convolution the kernel is in the first of the two factors. Raises ``InputError`` for a rank below 1.
    """
    if rank < 1:
        raise InputError(f"The rank of low-rank weights is at least 1, not {rank}.")
    updates: dict[str, Update] = {}
    for path in layers:
        weight = model.get_parameter(f"{path}.weight")
        outer, inner, *kernel = weight.shape
        bound = 1 / math.sqrt(inner * math.prod(kernel))
        down = torch.empty(rank, inner, *kernel, device=weight.device)
        nn.init.uniform_(down, -bound, bound)
        up = torch.zeros(outer, rank, *[1] * len(kernel), device=weight.device)
        updates[path] = LowRank(down, up)
    adapters.add(model, name, updates)
    make_trainable(model, name)


def layers_for(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """The layers whose name is one of ``targets`` or ends in one, such as ``to_q`` or ``to_out.0``.

    Raises ``InputError`` for a target that matches none.
    """
    names = list(adapters.layers_of(model))
    found: set[str] = set()
    for target in targets:
        matching = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matching:
            endings = sorted({re.sub(r"^.*\.(?=\D)", "", name) for name in names})
            raise InputError(
                f"No layer of the {type(model).__name__} is called {target!r}; there are {', '.join(endings)}."
            )
        found.update(matching)
    return [name for name in names if name in found]


def make_trainable(model: nn.Module, name: str) -> None:
    """Turn the tensors of a low-rank adapter from buffers into parameters."""
    for layer in adapters.adapted_layers(model).values():
        update = layer.update_named(name)
        if update is None:
            continue
        for key, tensor in dict(update.named_buffers(recurse=False)).items():
            delattr(update, key)
            update.register_parameter(key, nn.Parameter(tensor.float()))
