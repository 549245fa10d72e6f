"""The second text encoder of SDXL's shape: the base's layers, so that it reads what the base reads, and one after them.

SDXL's UNet is told the states before the last layer of two encoders, where the base's is told the last states of one.
Of the second encoder those are the base's last states before the final norm: a linear map of both comes near to what
the base's UNet is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.networks import save_transformer
from calotype.training.recipes.pocket_family.derived import own_tensors, train_only

_PREFIX = "text_model."
_PART = 64


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a CLIP text model by the names that every release of transformers reads."""
    return {
        key if key.startswith((_PREFIX, "text_projection.")) else _PREFIX + key: value
        for key, value in model.state_dict().items()
        if not key.endswith("position_ids")
    }


def build_second_encoder(base: Base, pooled: int) -> Any:
    """A ``CLIPTextModelWithProjection`` with one layer more than the base's; that one, the final norm and the
    projection to ``pooled`` channels are trained."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    given = base.text_encoder.config
    layers = int(given.num_hidden_layers)
    config = {**given.to_dict(), "num_hidden_layers": layers + 1, "projection_dim": pooled}
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    weights, last = named(base.text_encoder), f"encoder.layers.{layers - 1}."
    # it begins with what the one before it does
    weights |= {
        key.replace(last, f"encoder.layers.{layers}."): v for key, v in weights.items() if last in key
    }
    fill(encoder, weights)
    train_only(encoder, (rf".*encoder\.layers\.{layers}\.", ".*final_layer_norm", "text_projection"))
    return encoder


def fill(encoder: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give an encoder weights of :func:`named`'s names; it keeps those that are not there."""
    names = {(key if key in named(encoder) else _PREFIX + key): key for key in encoder.state_dict()}
    encoder.load_state_dict({names[key]: value for key, value in weights.items()}, strict=False)


def write_second_encoder(encoder: Any, base: Base, folder: Path) -> None:
    """Write its configuration and those of its weights that are not the base's."""
    save_transformer(encoder, own_tensors(named(encoder), named(base.text_encoder), base), folder)


def read_second_encoder(encoder: Any, folder: Path) -> None:
    """Fill it with what :func:`write_second_encoder` wrote. ``InputError`` where it is not there or of other sizes."""
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    if not file.is_file():
        raise InputError(f"There is no text encoder in {folder}: name a folder with its {file.name}.")
    mine, own = named(encoder), load_file(file)
    if any(key not in mine or mine[key].shape != value.shape for key, value in own.items()):
        raise InputError(f"The text encoder in {folder} is not of this preset's sizes.")
    fill(encoder, own)


class Reading(NamedTuple):
    """What is read of captions, each [B, L, D]."""

    told: torch.Tensor
    """the states before the last layer of both encoders, side by side, as SDXL's UNet takes them"""
    last: torch.Tensor
    """the base's last states, which its own UNet takes"""


@torch.no_grad()
def read_both(base: Base, ids: torch.Tensor) -> Reading:
    """Of token ids [B, L]. No second encoder is needed: before its last layer it is the base's."""
    read = base.text_encoder(input_ids=ids, output_hidden_states=True)
    states = read.hidden_states
    return Reading(torch.cat([states[-2], states[-1]], dim=-1).float(), read.last_hidden_state.float())


@torch.no_grad()
def maps_to_base(base: Base, ids: torch.Tensor, ridge: float = 1e-4) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear maps from what is told of captions [N, L] to the base's last states, by least squares.

    Returns [D, 2D], of both encoders' states, and [D, D], of the second's alone. ``ridge`` is added to the states'
    mean square.
    """
    width = int(base.text_encoder.config.hidden_size)
    square = torch.zeros(2 * width, 2 * width, dtype=torch.float64)
    product = torch.zeros(2 * width, width, dtype=torch.float64)
    for part in ids.split(_PART):
        told, last = (states.flatten(0, 1).double().cpu() for states in read_both(base, part))
        square += told.T @ told
        product += told.T @ last

    def solved(first: int) -> torch.Tensor:
        mine = square[first:, first:]
        damped = mine + ridge * mine.diagonal().mean() * torch.eye(len(mine), dtype=torch.float64)
        return torch.linalg.solve(damped, product[first:]).T.float().to(base.device)

    return solved(0), solved(width)


def grammar_ids(base: Base, scenes: int, seed: int) -> torch.Tensor:
    """Token ids of captions of random scenes, int64 [4 · scenes, L]."""
    from calotype.training.recipes.pocket.data import chunk_ids
    from calotype.training.recipes.pocket_family.settings import FamilySettings
    from calotype.training.recipes.pocket_family.views import pocket_settings

    settings = pocket_settings(FamilySettings(seed=seed), base)
    return chunk_ids(settings, base.tokenizer, "views", 0, scenes).flatten(0, 1).long().to(base.device)
