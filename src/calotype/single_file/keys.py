"""The original names of a network's parts, found from its own names; each map goes both ways.

The originals number what runs: the encoder's layers as ``input_blocks.n`` with the resampling counted along, the
decoder's as ``output_blocks.n`` (CompVis/latent-diffusion; CompVis/taming-transformers for the autoencoder).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PACKED_ATTENTION = {
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "add_k_proj": "encoder_kv",
    "add_v_proj": "encoder_kv",
    "to_out.0": "proj_out",
}
"""Attention that is no transformer: several projections are one tensor there."""
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "controlnet_mid_block": "middle_block_out.0",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_norm_out": "norm_out",
}

Names = Mapping[str, str]


def unet_names(keys: Iterable[str]) -> dict[str, str]:
    """Key of a U-Net or ControlNet -> its original key, without a prefix, which several share that are one there."""
    keys = list(keys)
    places = {**_UNET, **_numbered_down(keys), **_numbered_up(keys), **_hint(keys)}
    return {key: _renamed(key, places, _inside_unet) for key in keys}


def vae_names(keys: Iterable[str]) -> dict[str, str]:
    """Key of an autoencoder -> its original key, without a prefix."""
    keys = list(keys)
    places: dict[str, str] = {}
    for half in ("encoder", "decoder"):
        places |= {f"{half}.{ours}": f"{half}.{theirs}" for ours, theirs in _VAE.items()}
    for key in keys:
        if match := re.match(r"encoder\.down_blocks\.(\d+)\.(resnets|downsamplers)\.(\d+)", key):
            block, kind, layer = match.groups()
            theirs = f"block.{layer}" if kind == "resnets" else "downsample"
            places[match[0]] = f"encoder.down.{block}.{theirs}"
        elif match := re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)", key):
            last = max(_count(keys, r"decoder\.up_blocks\.(\d+)\.") - 1, 0)
            block, kind, layer = match.groups()
            theirs = f"block.{layer}" if kind == "resnets" else "upsample"
            places[match[0]] = f"decoder.up.{last - int(block)}.{theirs}"  # numbered from the picture's side
    return {key: _renamed(key, places, _inside_vae) for key in keys}


def _numbered_down(keys: list[str]) -> Names:
    places: dict[str, str] = {}
    number = 0
    for block in range(_count(keys, r"down_blocks\.(\d+)\.")):
        ours = f"down_blocks.{block}"
        for layer in range(_count(keys, rf"down_blocks\.{block}\.resnets\.(\d+)\.")):
            number += 1
            places[f"{ours}.resnets.{layer}"] = f"input_blocks.{number}.0"
            places[f"{ours}.attentions.{layer}"] = f"input_blocks.{number}.1"
        if any(key.startswith(f"{ours}.downsamplers.") for key in keys):
            number += 1
            places[f"{ours}.downsamplers.0"] = f"input_blocks.{number}.0"
            places[f"{ours}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
    for index in range(_count(keys, r"controlnet_down_blocks\.(\d+)\.")):
        places[f"controlnet_down_blocks.{index}"] = f"zero_convs.{index}.0"
    return places


def _numbered_up(keys: list[str]) -> Names:
    places: dict[str, str] = {}
    number = -1
    for block in range(_count(keys, r"up_blocks\.(\d+)\.")):
        ours = f"up_blocks.{block}"
        attends = any(key.startswith(f"{ours}.attentions.") for key in keys)
        for layer in range(_count(keys, rf"up_blocks\.{block}\.resnets\.(\d+)\.")):
            number += 1
            places[f"{ours}.resnets.{layer}"] = f"output_blocks.{number}.0"
            places[f"{ours}.attentions.{layer}"] = f"output_blocks.{number}.1"
        places[f"{ours}.upsamplers.0"] = f"output_blocks.{number}.{2 if attends else 1}"
    return places


def _hint(keys: list[str]) -> Names:
    """The small network that reads a ControlNet's picture: every second of its layers is an activation."""
    ours = "controlnet_cond_embedding"
    blocks = _count(keys, rf"{ours}\.blocks\.(\d+)\.")
    inside = {f"{ours}.blocks.{index}": f"input_hint_block.{2 * index + 2}" for index in range(blocks)}
    ends = {f"{ours}.conv_in": "input_hint_block.0", f"{ours}.conv_out": f"input_hint_block.{2 * blocks + 2}"}
    return {**inside, **ends}


def _count(keys: Iterable[str], pattern: str) -> int:
    found = re.compile(pattern)
    return max((int(match[1]) + 1 for key in keys if (match := found.match(key))), default=0)


def _renamed(key: str, places: Names, inside: Callable[[str, str], str]) -> str:
    """The key with the longest known beginning exchanged, and what follows named as there."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        beginning = ".".join(parts[:length])
        if beginning in places:
            return ".".join(filter(None, (places[beginning], inside(beginning, ".".join(parts[length:])))))
    return key


def _inside_unet(place: str, rest: str) -> str:
    name, _, tail = rest.rpartition(".")
    known = _PACKED_ATTENTION if ".attentions." in place else _RESNET
    return f"{known[name]}.{tail}" if name in known else rest


def _inside_vae(place: str, rest: str) -> str:
    if ".resnets." in place:
        return rest.replace("conv_shortcut", "nin_shortcut")
    if ".attentions." in place:
        name, _, tail = rest.rpartition(".")
        return f"{_VAE_ATTENTION[name]}.{tail}"
    return rest
