"""Random LoRA weights for small models, in each of the languages that files are written in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

State = dict[str, torch.Tensor]

ATTENTION = r"(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)"
EVERYTHING = r"(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|conv[12]|conv|q_proj|fc1|time_emb_proj)"


class Pair(NamedTuple):
    """Two factors of one layer's update; the second one's size is what ``alpha`` is divided by."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    magnitude: torch.Tensor


Pairs = dict[str, dict[str, Pair]]
"""Model -> layer -> factors."""


def pairs(models: Mapping[str, nn.Module], layers: str = ATTENTION, rank: int = 4, seed: int = 0) -> Pairs:
    """Random factors for the layers whose names end in ``layers``, a pattern."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    found: Pairs = {}
    for key, model in models.items():
        found[key] = {}
        for key_of_weight, weight in model.state_dict().items():
            name = key_of_weight.removesuffix(".weight")
            if weight.ndim < 2 or not re.search(rf"\.{layers}$", name):
                continue
            out, *rest = weight.shape
            found[key][name] = Pair(
                0.3 * draw(rank, *rest),
                0.3 * draw(out, rank, *[1] * (len(rest) - 1)),
                rank / 2,
                1 + 0.2 * draw(out).abs(),
            )
    return found


def _dotted(name: str, model: str) -> str:
    """The layers of text encoders, as they were called when these languages were in use."""
    return f"text_model.{name}" if model == "text_encoder" and not name.startswith("text_model.") else name


def peft(given: Pairs) -> State:
    """The reference's language of today."""
    state = {}
    for model, layers in given.items():
        for name, pair in layers.items():
            state[f"{model}.{name}.lora_A.weight"] = pair.down
            state[f"{model}.{name}.lora_B.weight"] = pair.up
    return state


def peft_dora(given: Pairs) -> State:
    """With magnitudes."""
    state = peft(given)
    for model, layers in given.items():
        for name, pair in layers.items():
            m = pair.magnitude
            state[f"{model}.{name}.lora_magnitude_vector"] = m if pair.down.ndim == 2 else m.view(1, -1, 1, 1)
    return state


def by_layer(given: Pairs) -> State:
    """The reference's language of 2023."""
    state = {}
    for model, layers in given.items():
        word = "lora" if model == "unet" else "lora_linear_layer"
        for name, pair in layers.items():
            state[f"{model}.{name}.{word}.down.weight"] = pair.down
            state[f"{model}.{name}.{word}.up.weight"] = pair.up
    return state


def by_processor(given: Pairs) -> State:
    """The reference's first language, in which updates hung on attention processors; for the UNet alone."""
    state = {}
    for name, pair in given["unet"].items():
        path, _, layer = name.removesuffix(".0").rpartition(".")
        state[f"unet.{path}.processor.{layer}_lora.down.weight"] = pair.down
        state[f"unet.{path}.processor.{layer}_lora.up.weight"] = pair.up
    return state


def kohya(given: Pairs, *, several: bool = False, magnitudes: bool = False, rename: Any = None) -> State:
    """Kohya's language, in which each layer has its alpha; ``several`` numbers the text encoders."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if several:
        prefixes["text_encoder"] = "lora_te1"
    state = {}
    for model, layers in given.items():
        for name, pair in layers.items():
            own = rename(name) if rename and model == "unet" else _dotted(name, model)
            key = f"{prefixes[model]}_{own.replace('.', '_')}"
            state[f"{key}.lora_down.weight"] = pair.down
            state[f"{key}.lora_up.weight"] = pair.up
            state[f"{key}.alpha"] = torch.tensor(pair.alpha)
            if magnitudes:
                state[f"{key}.dora_scale"] = pair.magnitude.reshape(-1, *[1] * (pair.down.ndim - 1))
    return state


def with_starts(starts: Mapping[str, str]) -> Callable[[str], str]:
    """A renaming by how names start."""

    def rename(name: str) -> str:
        for old, new in starts.items():
            if name.startswith(old):
                return new + name[len(old) :]
        return name

    return rename
