"""Networks that are made of the base's: what of them is trained, and files without what is still the base's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.files import replacing
from calotype.core.weights import WEIGHTS_STEM
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket_family import BASE

_FILE = f"{WEIGHTS_STEM}.safetensors"
Tensors = Mapping[str, torch.Tensor]


def train_only(module: nn.Module, patterns: Sequence[str]) -> None:
    """Leave all parameters as they are but those whose names match one of ``patterns`` from their beginning."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(re.match(pattern, name) for pattern in patterns))


def own_tensors(state: Tensors, origin: Tensors, base: Base) -> dict[str, torch.Tensor]:
    """The tensors of ``state`` in float16 that are not those of ``origin``, of the same name, in float16.

    Members are completed from the bundled checkpoint alone, so with another base these are all.
    """
    half = {name: value.detach().half().cpu().contiguous() for name, value in state.items()}
    if base.tokenizer.parent.resolve() != BASE.resolve():
        return half
    return {
        name: value
        for name, value in half.items()
        if name not in origin or not torch.equal(value, origin[name].half().cpu())
    }


def write_derived(model: Any, origin: Any, base: Base, folder: Path) -> None:
    """Write a model's configuration, and in float16 those of its weights that are not ``origin``'s."""
    from safetensors.torch import save_file

    # where the base lay when the model was made of it is no matter of the model's
    entries = {name: value for name, value in model.config.items() if name != "_name_or_path"}
    with torch.device("meta"):
        type(model).from_config(entries).save_config(folder)
    own = own_tensors(model.state_dict(), origin.state_dict(), base)
    with replacing(folder / _FILE) as temporary:
        save_file(own, str(temporary), metadata={"format": "pt"})


@torch.no_grad()
def read_derived(model: Any, folder: Path) -> None:
    """Give a model that is as it was made what :func:`write_derived` wrote of a trained one.

    ``InputError`` where there is none, or of other sizes.
    """
    from safetensors.torch import load_file

    if not (folder / _FILE).is_file():
        raise InputError(f"There is no {type(model).__name__} in {folder}: name a folder with its {_FILE}.")
    mine, own = model.state_dict(), load_file(folder / _FILE)
    if any(name not in mine or mine[name].shape != value.shape for name, value in own.items()):
        raise InputError(f"The {type(model).__name__} in {folder} is not of this preset's sizes.")
    model.load_state_dict(mine | own)
