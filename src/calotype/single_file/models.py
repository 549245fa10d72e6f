"""One network out of a file in the original layout."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import torch

from calotype.core import hub, weights
from calotype.core.errors import InputError, ModelFilesError
from calotype.core.tensor_files import tensor_infos
from calotype.single_file.keys import unet_names, vae_names
from calotype.single_file.recognise import (
    Infos,
    complete,
    controlnet_config,
    prefix_of,
    unet_config,
    vae_config,
)

if TYPE_CHECKING:
    from calotype.models.modeling import ModelMixin

_HUB = ("huggingface.co", "hf.co")

_BESIDE = (r"^loss\.", r"^model_ema\.", r"^(betas|alphas_cumprod|logvar)")
"""Patterns of what training leaves in the file of a network that has no prefix."""

_NO_EFFECT = ("low_cpu_mem_usage", "disable_mmap", "local_dir", "local_dir_use_symlinks", "extract_ema")


class Reading(NamedTuple):
    """How a class is read from the original layout."""

    component: str
    names: Callable[[Iterable[str]], dict[str, str]]
    config: Callable[[Infos, str], dict[str, Any]]


READINGS = {
    "UNet2DConditionModel": Reading("unet", unet_names, unet_config),
    "ControlNetModel": Reading("controlnet", unet_names, controlnet_config),
    "AutoencoderKL": Reading("vae", vae_names, vae_config),
}
"""Class -> how it is read."""


def located(place: str | os.PathLike[str], options: hub.HubOptions) -> Path:
    """The file of a path, or of an address such as ``https://huggingface.co/owner/model/blob/main/x.safetensors``."""
    name = os.fspath(place)
    if os.path.isfile(name):
        return Path(name)
    if os.path.isdir(name):
        raise ModelFilesError(f"{name} is a folder, not a file; load it with from_pretrained.")
    parts = urlsplit(name)
    inside = unquote(parts.path).strip("/") if parts.scheme in ("http", "https") else ""
    match = re.fullmatch(r"([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/(.+)", inside)
    if match is None or parts.hostname not in _HUB:
        raise ModelFilesError(
            f"{name!r} is neither an existing file nor the address of one on the Hub, such as "
            f"https://huggingface.co/owner/model/blob/main/model.safetensors."
        )
    return hub.find_file(match[1], match[3], options=options.at(options.revision or match[2]))


def load_model(cls: type[ModelMixin], place: Any, kwargs: dict[str, Any]) -> Any:
    """``cls.from_single_file``."""
    if isinstance(place, Mapping):
        raise InputError(
            f"{cls.__name__}.from_single_file takes a file, not a dictionary of tensors; save it first."
        )
    options = hub.HubOptions.take(kwargs)
    dtype = _either(kwargs, "dtype", "torch_dtype")
    device = kwargs.pop("device", None)
    subfolder = kwargs.pop("subfolder", None)
    config = kwargs.pop("config", None)
    for name in _NO_EFFECT:
        kwargs.pop(name, None)
    if _either(kwargs, "original_config", "original_config_file") is not None:
        raise InputError(
            "from_single_file reads no configurations of the original layout: what they say is in the weights' names "
            "and shapes; leave original_config out, or pass config=, a folder with config.json."
        )
    given = None if config is None else cls.load_config(config, subfolder=subfolder, **vars(options))
    return read_model(
        cls, located(place, options), dtype=dtype, device=device, config=given, overrides=kwargs
    )


def read_model(
    cls: type[ModelMixin],
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """The network in a file; ``config`` takes the place of what its names and shapes tell."""
    reading = READINGS.get(cls.__name__)
    if reading is None:
        raise InputError(
            f"{cls.__name__} is not read from single files; {', '.join(READINGS)} are, and whole checkpoints of Stable "
            f"Diffusion 1, 2 and XL by their pipelines."
        )
    infos = tensor_infos(path)
    prefix = prefix_of(reading.component, infos, str(path))
    with complete(reading.component, str(path)):
        described = reading.config(infos, prefix) if config is None else config
    files = weights.WeightFiles((path,), str(path), part=prefix)
    model, unknown = cls._empty(described, dict(overrides or {}), files, on_meta=True)
    if mistaken := [name for name in overrides or () if name in unknown]:
        raise InputError(
            f"{cls.__name__}.from_single_file has no argument {', '.join(mistaken)}, and it is no entry of the "
            f"configuration either."
        )
    ours = {prefix + theirs: key for key, theirs in reading.names(model.state_dict()).items()}

    def rename(key: str, expected: Container[str]) -> str:
        return ours.get(key, key)

    weights.fill(
        model,
        files,
        dtype=dtype,
        device=device,
        rename=rename,
        ignore=() if prefix else _BESIDE,
        keep_in_fp32=cls._keep_in_fp32_modules,
        pointwise=True,
    )
    model.register_to_config(_name_or_path=str(path))
    return model.eval()


def _either(kwargs: dict[str, Any], *names: str) -> Any:
    values = [kwargs.pop(name, None) for name in names]
    return next((value for value in values if value is not None), None)
