"""LoRA weights (https://arxiv.org/abs/2106.09685) that are trained, in the library's own adapters."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from calotype.adapters import model as adapters
from calotype.adapters.updates import LowRank, Update


def add_trainable(model: nn.Module, name: str, layers: Iterable[str], rank: int) -> None:
    """Give linear layers of ``model`` an adapter that changes nothing yet and is trained with the other parameters."""
    updates: dict[str, Update] = {}
    for path in layers:
        weight = model.get_parameter(f"{path}.weight")
        down = torch.empty(rank, weight.shape[1], device=weight.device)
        nn.init.uniform_(down, -1 / math.sqrt(weight.shape[1]), 1 / math.sqrt(weight.shape[1]))
        updates[path] = LowRank(down, torch.zeros(weight.shape[0], rank, device=weight.device))
    adapters.add(model, name, updates)
    make_trainable(model, name)


def make_trainable(model: nn.Module, name: str) -> None:
    """Turn the tensors of a low-rank adapter from buffers into parameters."""
    for layer in adapters.adapted_layers(model).values():
        update = layer.update_named(name)
        if update is None:
            continue
        for key, tensor in dict(update.named_buffers(recurse=False)).items():
            delattr(update, key)
            update.register_parameter(key, nn.Parameter(tensor.float()))
