"""What a captured call depends on beside its arguments: where a model's weights are, and what the model consists of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from calotype.adapters.layer import Adapted
from calotype.adapters.strength import strength
from calotype.nn.attention import Attention, AttnAddedKVProcessor, AttnProcessor

_PROCESSORS = (AttnProcessor, AttnAddedKVProcessor)
"""The attention procedures that compute the same each time, which a user's own need not."""
_SIMPLE = (bool, int, float, str, tuple, type(None))


class Weights:
    """The tensors of a model as they are now, kept so that their memory is not given away unnoticed."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: list[Tensor] = list(_tensors(model))
        self.addresses = [tensor.data_ptr() for tensor in self.tensors]

    def stand(self) -> bool:
        """Whether all are where they were; their values may have changed."""
        return [tensor.data_ptr() for tensor in self.tensors] == self.addresses


def structure(model: nn.Module) -> tuple[Any, ...]:
    """What the model consists of and how it is set: equal for two calls that compute alike."""
    found: list[Any] = [strength()]
    for module in model.modules():
        own = [
            (name, value)
            for name, value in module.__dict__.items()
            if isinstance(value, _SIMPLE) and not name.startswith("__")
        ]
        found.append((id(module), tuple(own), tuple(map(id, module._parameters.values()))))
        if isinstance(module, Adapted):
            found.append((tuple(module.strengths.items()), id(module.layer)))
        if isinstance(module, Attention):
            found.append(type(module.processor))
    return tuple(found)


def obstacle(model: nn.Module) -> str | None:
    """Why calls of this model cannot be captured, if they cannot."""
    if hasattr(model, "_orig_mod"):
        return "it is compiled already"
    for name, module in model.named_modules():
        if module.training:
            return "it is in training mode"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"hooks are on {name or 'it'}, as offloading puts them there"
        if isinstance(module, Attention) and type(module.processor) not in _PROCESSORS:
            return f"{name} computes by a {type(module.processor).__name__}, which may do more than compute"
    devices = {tensor.device.type for tensor in _tensors(model)}
    return None if devices <= {"cuda"} else f"its weights are on {', '.join(sorted(devices))}"


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, Adapted):
            yield from module.layer.parameters()


def channels_last(model: nn.Module) -> None:
    """The weights of convolutions laid out as channels-last, one after another, in the model itself."""
    for module in model.modules():
        layer = module.layer if isinstance(module, Adapted) else module
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_contiguous(memory_format=torch.channels_last):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def pack(model: nn.Module) -> None:
    """Queries', keys' and values' weights of self-attention put one after the other in memory, names kept."""
    for module in model.modules():
        if (
            not isinstance(module, Attention)
            or module.is_cross_attention
            or module.added_kv_proj_dim is not None
        ):
            continue
        parts = (module.to_q, module.to_k, module.to_v)
        if any(type(part) is not nn.Linear for part in parts):
            continue
        for name in ("weight", "bias"):
            tensors = [getattr(part, name) for part in parts]
            if any(tensor is None for tensor in tensors):
                continue
            whole = torch.cat([tensor.data for tensor in tensors])
            for tensor, piece in zip(tensors, whole.split([len(t) for t in tensors]), strict=True):
                tensor.data = piece
