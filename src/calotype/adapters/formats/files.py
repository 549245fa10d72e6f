"""LoRA files: which one is meant, what stands in it, and writing one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from calotype.core import hub
from calotype.core.config import read_json
from calotype.core.errors import InputError, ModelFilesError
from calotype.core.files import replacing
from calotype.core.tensor_files import read_header, read_pickle, read_tensors

WEIGHTS = "pytorch_lora_weights"
PEFT_WEIGHTS = "adapter_model"
CUSTOM_WEIGHTS = "pytorch_custom_diffusion_weights"
PEFT_CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
"""The entry of a safetensors file's metadata that has PEFT's settings."""

Source = str | os.PathLike[str] | Mapping[str, torch.Tensor]
"""A file, a folder, a Hub repository, or the state dictionary itself."""

Configs = dict[str, dict[str, Any]]
"""PEFT's settings by the model that they are for; by ``""`` for any."""


def read(
    source: Source,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    options: hub.HubOptions | None = None,
) -> tuple[dict[str, Any], Configs, str]:
    """The tensors of a LoRA file, PEFT's settings if there are any, and where they are from.

    Pickles are read only for ``use_safetensors=False``. Raises ``ModelFilesError`` for a file that is missing or
    damaged, or where several could be meant.
    """
    if isinstance(source, Mapping):
        return dict(source), {}, "The given state dictionary"
    path = find(source, weight_name, subfolder, use_safetensors, options or hub.HubOptions())
    if path.suffix == ".safetensors":
        names = read_header(path)
        state: dict[str, Any] = dict(read_tensors(path, names, lambda _, tensor: tensor))
        configs = _by_model(_metadata(path))
    elif use_safetensors is False:
        state, configs = dict(read_pickle(path, nested=True)), {}  # Custom Diffusion's have empty ones inside
    else:
        raise ModelFilesError(
            f"{path} is a pickle, which may be made to run code when it is loaded: pass use_safetensors=False if you "
            f"trust where it comes from."
        )
    beside = path.parent / PEFT_CONFIG
    if not configs and beside.is_file():
        configs = {"": read_json(beside)}
    return state, configs, str(path)


def find(
    source: str | os.PathLike[str],
    weight_name: str | None,
    subfolder: str | None,
    use_safetensors: bool | None,
    options: hub.HubOptions,
    stems: Sequence[str] = (WEIGHTS, PEFT_WEIGHTS, CUSTOM_WEIGHTS),
) -> Path:
    """The weight file that is meant: of the usual name, or else the only one."""
    if os.path.isfile(source):
        return Path(source)
    if weight_name is not None:
        return hub.find_file(source, weight_name, subfolder=subfolder, options=options)
    endings = (".bin", ".pt", ".ckpt") if use_safetensors is False else (".safetensors",)
    for stem in stems:
        found = hub.try_find_file(source, f"{stem}{endings[0]}", subfolder=subfolder, options=options)
        if found is not None:
            if stem == PEFT_WEIGHTS:
                hub.try_find_file(source, PEFT_CONFIG, subfolder=subfolder, options=options)
            return found
    if os.path.isdir(source):
        folder = Path(source, subfolder or "")
        names = tuple(entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    else:
        names, _ = hub.list_files(os.fspath(source), options)
        start = f"{subfolder}/" if subfolder else ""
        names = tuple(name.removeprefix(start) for name in names if name.startswith(start))
    fitting = sorted(name for name in names if name.endswith(endings) and "/" not in name)
    if len(fitting) == 1:
        return hub.find_file(source, fitting[0], subfolder=subfolder, options=options)
    which = (
        f"these could be meant: {', '.join(fitting)}" if fitting else f"none ends in {' or '.join(endings)}"
    )
    raise ModelFilesError(
        f"{os.fspath(source)} has no {stems[0]}{endings[0]}, and {which}; pass weight_name='…'."
    )


def write(
    layers: Mapping[str, Mapping[str, torch.Tensor]],
    folder: str | os.PathLike[str],
    *,
    weight_name: str | None = None,
    metadata: Mapping[str, Mapping[str, Any] | None] | None = None,
    safe_serialization: bool = True,
    save_function: Callable[..., Any] | None = None,
) -> Path:
    """Write tensors by model and layer, in the reference's layout; the file appears whole. Returns its path."""
    from safetensors.torch import save_file

    place = Path(folder)
    if place.is_file():
        raise ModelFilesError(f"{place} is a file; LoRA weights are saved in a folder.")
    if not any(layers.values()):
        raise InputError("There are no LoRA layers to save: pass those of at least one model.")
    state = {
        f"{model}.{key}" if model else key: tensor.detach().contiguous()
        for model, tensors in layers.items()
        for key, tensor in tensors.items()
    }
    settings = {
        f"{model}.{key}" if model else key: sorted(value) if isinstance(value, set) else value
        for model, config in (metadata or {}).items()
        for key, value in (config or {}).items()
    }
    place.mkdir(parents=True, exist_ok=True)
    path = place / (weight_name or f"{WEIGHTS}{'.safetensors' if safe_serialization else '.bin'}")
    with replacing(path) as temporary:
        if save_function is not None:
            save_function(state, temporary)
        elif safe_serialization:
            more = {METADATA: json.dumps(settings, indent=2, sort_keys=True)} if settings else {}
            save_file(state, temporary, metadata={"format": "pt", **more})
        else:
            torch.save({key: tensor.clone() for key, tensor in state.items()}, temporary)
    return path


def _metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(os.fspath(path), framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA)
    if text is None:
        return {}
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ModelFilesError(f"The settings in the metadata of {path} are not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ModelFilesError(f"The settings in the metadata of {path} are not a mapping.")
    return settings


def _by_model(settings: Mapping[str, Any]) -> Configs:
    configs: Configs = {}
    for key, value in settings.items():
        model, _, name = key.rpartition(".")
        configs.setdefault(model, {})[name] = value
    return configs
