"""Weights of Custom Diffusion (https://arxiv.org/abs/2212.04488) as files have them."""

from __future__ import annotations

import re

import torch
from torch import nn

from calotype.adapters.model import active, adapted_layers
from calotype.adapters.updates import Replaced
from calotype.core.errors import InputError

_LAYER = re.compile(r"(?P<attention>.+)\.(?P<name>to_[qkv]|to_out)(?P<rest>\.0)?")


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the adapter that acts; ``InputError`` where none or several act, or another kind does."""
    names = active(model)
    if len(names) != 1:
        raise InputError(f"One adapter must act to be saved; {', '.join(names) or 'none'} act here.")
    found: dict[str, torch.Tensor] = {}
    for path, layer in adapted_layers(model).items():
        update, match = layer.update_named(names[0]), _LAYER.fullmatch(path)
        if update is None:
            continue
        if not isinstance(update, Replaced) or match is None:
            raise InputError(
                f"The adapter {names[0]!r} is none of Custom Diffusion; save it with save_lora_adapter()."
            )
        start = f"{match['attention']}.processor.{match['name']}_custom_diffusion{match['rest'] or ''}"
        found |= {f"{start}.{key}": tensor for key, tensor in update.tensors().items()}
    return found
