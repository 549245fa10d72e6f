"""Low-rank weights of a checkpoint's models: put in, trained, written as the file that LoRA loaders know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from calotype.adapters import model as adapters
from calotype.adapters.formats import files
from calotype.core.errors import InputError
from calotype.training.fine_tuning.base import Base
from calotype.training.fine_tuning.settings import LowRankSettings, ModelSettings
from calotype.training.low_rank import add_trainable, layers_for

NAME = "trained"
"""The adapter's name while it is trained."""
FILE = "pytorch_lora_weights.safetensors"


def check_text_encoder(settings: ModelSettings, base: Base) -> None:
    """``InputError`` where a text encoder is to be trained that cannot be."""
    if settings.train_text_encoder and base.xl:
        raise InputError("train_text_encoder is for checkpoints with one text encoder, which SDXL's are not.")


def targets(settings: LowRankSettings, base: Base) -> dict[str, list[str]]:
    """The layers that get low-rank weights, by the names that files have for their models.

    Raises ``InputError`` for target modules that there are none of.
    """
    wanted = {"unet": settings.target_modules}
    if settings.train_text_encoder:
        wanted["text_encoder"] = settings.text_encoder_target_modules
    found = {}
    for key, listed in wanted.items():
        names = [name.strip() for name in listed.split(",") if name.strip()]
        if not names:
            raise InputError(f"There are no target modules for the {key}: name some, separated by commas.")
        found[key] = layers_for(getattr(base.pipe, key), names)
    return found


def put_in(settings: LowRankSettings, base: Base) -> dict[str, nn.Module]:
    """Give the models low-rank weights; returns the models by the names that files have for them."""
    strength = strength_of(settings)
    models: dict[str, nn.Module] = {}
    for key, layers in targets(settings, base).items():
        models[key] = getattr(base.pipe, key)
        add_trainable(models[key], NAME, layers, settings.rank)
        adapters.choose(models[key], {NAME: lambda layer: strength})
    return models


def strength_of(settings: LowRankSettings) -> float:
    """alpha / rank."""
    return (settings.rank if settings.lora_alpha is None else settings.lora_alpha) / settings.rank


def write(models: Mapping[str, nn.Module], strength: float, folder: Path) -> Sequence[str]:
    """Write the weights in float32, with alpha / rank multiplied in, so that alpha is the rank for all loaders."""
    layers: dict[str, dict[str, Any]] = {}
    for key, module in models.items():
        layers[key] = {
            name: (value.detach() * (strength if ".lora_B." in name else 1.0)).float().cpu().contiguous()
            for name, value in adapters.tensors(module, NAME).items()
        }
    return [files.write(layers, folder, weight_name=FILE).name]
