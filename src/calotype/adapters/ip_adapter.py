"""IP-Adapters of a UNet (arXiv:2308.06721): put in, weighed, taken out again, from outside.

The projections stand at ``unet.encoder_hid_proj``, keys and values at ``image_sources`` of the attention layers. All
their tensors are buffers that are not saved with the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from calotype.adapters import model as low_rank
from calotype.adapters.blocks import strengths
from calotype.adapters.ip_adapter_files import Contents, projection
from calotype.core.errors import InputError, WeightsError
from calotype.core.meta import on_meta
from calotype.nn.attention import Attention
from calotype.nn.image_projections import ImageProjections, image_projections
from calotype.nn.image_prompt import WITH_IMAGE_PROMPT, ImageSources, Scale

_SIDES = ("down_blocks", "up_blocks", "mid_block")
"""The order in which published files count a UNet's layers."""


def readers(unet: nn.Module) -> dict[str, Attention]:
    """The layers that read the context, by name, in the order in which files count them."""
    return {name: layer for name, layer in _counted(unet).items() if name.endswith("attn2")}


def _counted(unet: nn.Module) -> dict[str, Attention]:
    """All attention layers of the transformers over pictures, in the order in which files count them."""
    found = {
        name: part
        for name, part in getattr(unet, "_orig_mod", unet).named_modules()
        if isinstance(part, Attention) and "motion_modules" not in name and name.split(".")[0] in _SIDES
    }
    return dict(sorted(found.items(), key=lambda item: _SIDES.index(item[0].split(".")[0])))


def install(unet: Any, adapters: Sequence[Contents]) -> None:
    """Give a UNet adapters, in the place of those that it has; they act at scale 1.

    Raises ``WeightsError`` or ``InputError``, with the UNet as it was, for adapters of another architecture.
    """
    unet = getattr(unet, "_orig_mod", unet)
    before = image_projections(unet)
    text = unet.encoder_hid_proj if before is None else before.__dict__["text"]
    if text is not None and type(text) is not nn.Linear:
        raise InputError(
            f"This UNet has encoder_hid_dim_type={unet.config.encoder_hid_dim_type!r}: it reads pictures by itself and "
            f"takes no IP-Adapter."
        )
    layers = readers(unet)
    if not layers:
        raise InputError(f"This {type(unet).__name__} has no attention to a text, so it takes no IP-Adapter.")
    place = {"device": unet.device, "dtype": unet.dtype}
    pairs = [_pairs(one, layers) for one in adapters]
    projecting = [_filled(projection(one), one.image_proj, **place) for one in adapters]
    sources = {
        name: ImageSources(name, *([_linear(pair[name][i], **place) for pair in pairs] for i in (0, 1)))
        for name in layers
    }
    eject(unet)
    made = ImageProjections(projecting, [dict.fromkeys(layers, 1.0)] * len(adapters), text)
    for name, layer in layers.items():
        layer.image_sources = sources[name].train(layer.training)
    unet.encoder_hid_proj = made.train(unet.training)
    unet.overlay_config(encoder_hid_dim_type=WITH_IMAGE_PROMPT)


def eject(unet: Any) -> None:
    """Take all adapters out; the UNet is as it was before the first came."""
    unet = getattr(unet, "_orig_mod", unet)
    made = image_projections(unet)
    if made is None:
        return
    for layer in readers(unet).values():
        layer.image_sources = None
    unet.encoder_hid_proj = made.__dict__["text"]
    unet.overlay_config()
    if loras := [name for name in made.loras if name in low_rank.adapters(unet)]:
        low_rank.remove(unet, loras)


def low_rank_state(contents: Contents, unet: nn.Module) -> dict[str, torch.Tensor]:
    """The low-rank updates that come with an adapter, under the names that LoRA files have for the UNet's layers."""
    names = list(_counted(unet))
    state = {}
    for key, tensor in contents.lora.items():
        number, _, rest = key.partition(".")
        if not number.isdigit() or int(number) >= len(names):
            raise WeightsError(
                f"{contents.origin} has {key!r}, and the UNet has {len(names)} attention layers."
            )
        state[f"unet.{names[int(number)]}.processor.{rest}"] = tensor
    return state


@contextmanager
def beside_others(unet: nn.Module) -> Iterator[None]:
    """Low-rank updates that are loaded within this act beside those that act now, not in their place."""
    before = {path: layer.strengths for path, layer in low_rank.adapted_layers(unet).items()}
    yield
    for path, layer in low_rank.adapted_layers(unet).items():
        layer.strengths = {**before.get(path, {}), **layer.strengths}


def scales(unet: nn.Module, given: Any) -> tuple[Mapping[str, Scale], ...]:
    """How strongly each adapter acts in each layer, from a number, a mapping by block, or a list of one for each.

    In place of a number may stand a list of numbers, one for each picture of an adapter. What a mapping leaves out is
    0. Raises ``InputError`` for another count and for blocks that the UNet does not have.
    """
    made = image_projections(unet)
    count = 0 if made is None else len(made.image_projection_layers)
    each = list(given) if isinstance(given, list | tuple) else [given] * count
    if not count:
        raise InputError("There is no IP-Adapter to scale: call load_ip_adapter first.")
    if len(each) != count:
        raise InputError(
            f"There are {len(each)} scales for {count} IP-Adapters: give one for all or one for each."
        )
    names = tuple(readers(unet))
    return tuple(_by_layer(one, names) for one in each)


def _by_layer(given: Any, names: Sequence[str]) -> dict[str, Scale]:
    if isinstance(given, list | tuple):
        return dict.fromkeys(names, tuple(_number(one) for one in given))
    if isinstance(given, Mapping):
        amount = strengths(given, names, default=0.0)
        return {name: amount(name) for name in names}
    return dict.fromkeys(names, _number(given))


def _number(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise InputError(
            f"The scale of an IP-Adapter is a number, a mapping by block, or a list, not {given!r}."
        )
    return float(given)


def _pairs(
    contents: Contents, layers: Mapping[str, Attention]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The matrices of keys and values for each layer, of shape (inner, context)."""
    state = dict(contents.ip_adapter)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    count = sum(key.endswith(".to_k_ip.weight") for key in state)
    if count != len(layers):
        raise WeightsError(
            f"{contents.origin} has keys and values for {count} layers and the UNet has {len(layers)} that read a "
            f"text: the adapter is for another architecture."
        )
    for index, (name, layer) in enumerate(layers.items()):
        keys = [f"{2 * index + 1}.to_{kind}_ip.weight" for kind in "kv"]
        for key in keys:
            if key not in state:
                raise WeightsError(f"{contents.origin} lacks {key!r}, the matrix for {name}.")
            wanted = (layer.inner_dim, layer.cross_attention_dim)
            if tuple(state[key].shape) != wanted or layer.added_kv_proj_dim is not None:
                raise WeightsError(
                    f"{contents.origin}: {key!r} is {tuple(state[key].shape)}, and {name} of the UNet needs {wanted}: "
                    f"the adapter is for another architecture."
                )
        found[name] = (state.pop(keys[0]), state.pop(keys[1]))
    if state:
        raise WeightsError(
            f"{contents.origin} has {len(state)} weights without a place, such as {sorted(state)[0]!r}."
        )
    return found


def _linear(weight: torch.Tensor, **place: Any) -> nn.Module:
    with on_meta():
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    return _filled(made, {"weight": weight}, **place)


def _filled(module: nn.Module, state: Mapping[str, torch.Tensor], **place: Any) -> nn.Module:
    """The module with these values, as buffers: they go where the model goes and are no part of its state."""
    for path, part in module.named_modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                value = state[f"{path}.{name}" if path else name]
                part.register_buffer(name, value.detach().to(**place), persistent=False)
    return module
