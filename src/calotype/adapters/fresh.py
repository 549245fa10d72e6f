"""New adapters, to be trained: factors of the layers that a PEFT configuration names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from calotype.adapters.model import adapters, add, layers_of
from calotype.adapters.updates import Decomposed, Layer, LowRank, Scaled, Update
from calotype.core.errors import InputError

_READ = {
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "rank_pattern",
    "alpha_pattern",
}
_READ |= {"use_rslora", "use_dora", "init_lora_weights"}
_NO_EFFECT = {"task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"}
_NO_EFFECT |= {"inference_mode", "megatron_core", "qalora_group_size", "runtime_config", "fan_in_fan_out"}
_STARTS = (True, False, "gaussian")


def put(model: nn.Module, config: Any, name: str) -> None:
    """Give a model an adapter to train, as a ``peft.LoraConfig`` (or its entries as a mapping) describes it.

    ΔW = (α/r)·B·A with B = 0, so that nothing changes at first, unless ``init_lora_weights`` is False. Its parameters
    require gradients, in float32 where the model is of a smaller type. Raises ``InputError`` for a name that is in use,
    for layers that the model does not have, and for settings that are not offered.
    """
    settings = _settings(config)
    if name in adapters(model):
        raise InputError(f"The adapter name {name!r} is already in use; choose another or delete it first.")
    layers = layers_of(model)
    chosen = [path for path in layers if _named(path, settings, layers)]
    if not chosen:
        raise InputError(
            f"target_modules={settings['target_modules']!r} names no linear layer and no convolution of "
            f"{type(model).__name__}, such as {', '.join(list(layers)[:3])}."
        )
    add(model, name, {path: _drawn(layers[path], path, settings) for path in chosen})


def _settings(config: Any) -> Mapping[str, Any]:
    """The entries of a configuration with their defaults; ``InputError`` for one that is not offered."""
    from peft import LoraConfig

    if isinstance(config, Mapping):
        config = LoraConfig(**config)
    if not isinstance(config, LoraConfig):
        raise InputError(
            f"An adapter to train is described by a peft.LoraConfig, not {type(config).__name__}."
        )
    found, usual = vars(config), vars(LoraConfig())
    for key, value in found.items():
        if key not in _READ | _NO_EFFECT and value != usual.get(key):
            raise InputError(f"An adapter with {key}={value!r} is not offered; leave it out.")
    if found["target_modules"] is None:
        raise InputError('target_modules must name layers, as ["to_q", "to_v"].')
    if found["init_lora_weights"] not in _STARTS:
        raise InputError(
            f'init_lora_weights is True, False or "gaussian" here, not {found["init_lora_weights"]!r}.'
        )
    return found


def _named(path: str, settings: Mapping[str, Any], layers: Mapping[str, Layer]) -> bool:
    """Whether a layer is among those that are to be trained."""
    wanted, left_out = settings["target_modules"], settings["exclude_modules"]
    if left_out and _is_one_of(path, left_out):
        return False
    if wanted == "all-linear":
        return isinstance(layers[path], nn.Linear)
    return _is_one_of(path, wanted)


def _is_one_of(path: str, names: Any) -> bool:
    """A text is a regular expression for the whole name; of several each is a name's end."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _drawn(layer: Layer, path: str, settings: Mapping[str, Any]) -> Update:
    """Factors for one layer, from the distributions that PEFT has."""
    rank = _of_pattern(settings["rank_pattern"], path, settings["r"])
    alpha = _of_pattern(settings["alpha_pattern"], path, settings["lora_alpha"])
    if isinstance(layer, nn.Linear):
        first: Layer = nn.Linear(layer.in_features, rank, bias=False)
        second: Layer = nn.Linear(rank, layer.out_features, bias=False)
    else:
        if layer.groups != 1:
            raise InputError(f"{path} is a convolution in {layer.groups} groups, which takes no LoRA.")
        first = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False)
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    start = settings["init_lora_weights"]
    if start == "gaussian":
        nn.init.normal_(first.weight, std=1 / rank)
    elif start:
        nn.init.kaiming_uniform_(first.weight, a=math.sqrt(5))
    if start:
        nn.init.zeros_(second.weight)
    place = {"device": layer.weight.device, "dtype": torch.promote_types(layer.weight.dtype, torch.float32)}
    down, up = (nn.Parameter(part.weight.detach().to(**place)) for part in (first, second))
    factor = alpha / (math.sqrt(rank) if settings["use_rslora"] else rank)
    update = Scaled(LowRank(down, up), factor, settings["lora_dropout"])
    if not settings["use_dora"]:
        return update
    with torch.no_grad():
        moved = layer.weight.float() + update.delta(layer)
        axes = list(range(1, moved.ndim))
        norms = torch.linalg.vector_norm(moved, dim=axes, keepdim=True)
    return Decomposed(update, nn.Parameter(norms.to(**place)))


def _of_pattern(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """The entry whose key, a regular expression, is the end of a layer's name."""
    return next((value for key, value in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", path)), default)
