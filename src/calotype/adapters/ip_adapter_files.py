"""Files of IP-Adapters: which one is meant, what stands in it, and the projection that it describes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.core import hub
from calotype.core.errors import ModelFilesError, WeightsError
from calotype.core.meta import on_meta
from calotype.core.pickles import flattened
from calotype.core.tensor_files import read_header, read_pickle, read_tensors
from calotype.nn.image_projections import (
    EmbeddingTokens,
    FaceTokens,
    FaceTokensThatLook,
    PatchTokens,
    Perceiver,
)

logger = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]
Source = str | os.PathLike[str] | Mapping[str, Any]
"""A file, a folder, a Hub repository, or what a file holds."""

_HEAD_DIM = 64
"""The width of a head in all published perceivers, which files do not tell."""

_SPOKEN = {"image_proj": "a projection of pictures", "ip_adapter": "keys and values for attention"}


@dataclass(frozen=True)
class Contents:
    """An IP-Adapter as its file has it, and where it is from: keys as in the published files, parts apart.

    ``lora`` are low-rank updates of attention that FaceID's files have among ``ip_adapter``.
    """

    image_proj: Tensors
    ip_adapter: Tensors
    lora: Tensors
    origin: str


def read(
    source: Source,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    options: hub.HubOptions | None = None,
) -> Contents:
    """An IP-Adapter's tensors.

    In place of a pickle the safetensors file of the same name is read, if there is one; the pickle itself only for
    ``use_safetensors=False``. Raises ``ModelFilesError`` for a file that is missing or damaged, and ``WeightsError``
    for one that is no IP-Adapter.
    """
    if isinstance(source, Mapping):
        return _parts(flattened(source), "The given state dictionary")
    path = find(source, weight_name, subfolder, use_safetensors, options or hub.HubOptions())
    if path.suffix == ".safetensors":
        return _parts(dict(read_tensors(path, read_header(path), lambda _, tensor: tensor)), str(path))
    return _parts(read_pickle(path, nested=True), str(path))


def find(
    source: str | os.PathLike[str],
    weight_name: str | None,
    subfolder: str | None,
    use_safetensors: bool | None,
    options: hub.HubOptions,
) -> Path:
    """The file that is meant; ``ModelFilesError`` for a pickle that was not asked for."""
    if os.path.isfile(source):
        source, weight_name, subfolder = Path(source).parent, Path(source).name, None
    if weight_name is None:
        raise ModelFilesError(f"{os.fspath(source)} may have several IP-Adapters; pass weight_name='…'.")
    if weight_name.endswith(".safetensors") or use_safetensors is False:
        return hub.find_file(source, weight_name, subfolder=subfolder, options=options)
    stem = weight_name.rpartition(".")[0] or weight_name
    safe = hub.try_find_file(source, f"{stem}.safetensors", subfolder=subfolder, options=options)
    if safe is None:
        path = hub.find_file(source, weight_name, subfolder=subfolder, options=options)
        raise ModelFilesError(
            f"{path} is a pickle, which may be made to run code when it is loaded: pass use_safetensors=False if you "
            f"trust where it comes from."
        )
    logger.info("Reading %s in place of %s, which is a pickle.", safe, weight_name)
    return safe


def projection(contents: Contents) -> nn.Module:
    """The projection that a file describes, without values; ``WeightsError`` where it is none that is known."""
    state = contents.image_proj
    with on_meta():
        try:
            made = _made(state)
        except (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
            raise WeightsError(
                f"{contents.origin} has an incomplete projection of pictures: {error}."
            ) from error
    if made is None:
        raise WeightsError(
            f"{contents.origin} has a projection of pictures of an unknown kind, with "
            f"{', '.join(sorted(state)[:4])}."
        )
    expected = {name: tuple(tensor.shape) for name, tensor in made.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name)):
        raise WeightsError(
            f"{contents.origin}: {wrong[0]!r} of its projection of pictures is "
            f"{found.get(wrong[0], 'missing')}; {expected.get(wrong[0], 'nothing')} belongs there."
        )
    return made


def _made(state: Tensors) -> nn.Module | None:
    def shape(name: str) -> tuple[int, ...]:
        return tuple(state[name].shape)

    if "proj.weight" in state:
        (context,) = shape("norm.weight")
        out, into = shape("proj.weight")
        return EmbeddingTokens(into, context, out // context)
    if "proj.3.weight" in state:
        hidden, into = shape("proj.0.weight")
        return PatchTokens(into, hidden, *shape("proj.3.weight"))
    if "proj.0.weight" in state:
        (context,) = shape("norm.weight")
        hidden, into = shape("proj.0.weight")
        face = FaceTokens(into, hidden, context, shape("proj.2.weight")[0] // context)
        looks = any(name.startswith("perceiver_resampler.") for name in state)
        return FaceTokensThatLook(face, _perceiver(state, "perceiver_resampler.")) if looks else face
    return _perceiver(state, "", state["latents"].shape[1]) if "latents" in state else None


def _perceiver(state: Tensors, prefix: str, tokens: int | None = None) -> Perceiver:
    depth = 1 + max(
        int(key.removeprefix(prefix).split(".")[1]) for key in state if key.startswith(f"{prefix}layers.")
    )
    dim, into = state[f"{prefix}proj_in.weight"].shape
    inner = state[f"{prefix}layers.0.0.to_q.weight"].shape[0]
    hidden = state[f"{prefix}layers.0.1.1.weight"].shape[0]
    context = state[f"{prefix}proj_out.weight"].shape[0]
    return Perceiver(into, dim, context, depth, inner // _HEAD_DIM, _HEAD_DIM, hidden, tokens)


def _parts(state: Mapping[str, Any], origin: str) -> Contents:
    parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in _SPOKEN}
    for key, tensor in state.items():
        part, _, name = key.partition(".")
        if part not in parts or not isinstance(tensor, torch.Tensor):
            raise WeightsError(f"{origin} is no IP-Adapter: it has {key!r} beside {' and '.join(_SPOKEN)}.")
        parts[part][name] = tensor
    for part, what in _SPOKEN.items():
        if not parts[part]:
            raise WeightsError(f"{origin} is no IP-Adapter: it has no {part!r}, {what}.")
    lora = {key: tensor for key, tensor in parts["ip_adapter"].items() if "_lora." in key}
    matrices = {key: tensor for key, tensor in parts["ip_adapter"].items() if key not in lora}
    return Contents(parts["image_proj"], matrices, lora, origin)
