"""The languages of LoRA files: which tensor of which layer a key names.

Known are the reference's own of today (which is PEFT's) and before, PEFT's, Kohya's, LyCORIS's and Custom Diffusion's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from calotype.core.errors import WeightsError

_OLD = (
    (re.compile(r"\.processor\.(to_[qkv])_lora\."), r".\1.lora."),
    (re.compile(r"\.processor\.to_out_lora\."), ".to_out.0.lora."),
    (re.compile(r"\.to_([qkv])_lora\."), r".\1_proj.lora."),
    (re.compile(r"\.to_out_lora\."), ".out_proj.lora."),
)
"""Updates that hung on attention processors of UNets and attention layers of text encoders, until 2023."""

_CUSTOM = re.compile(
    r"(?P<path>.+)\.processor\.(?P<layer>to_[qkv]|to_out)_custom_diffusion(?P<rest>\.0)?\.(?P<role>weight|bias)"
)
"""Weights that take the layer's place (Custom Diffusion, https://arxiv.org/abs/2212.04488)."""

_NAMED = r"(?:\.[^.]+)?"
"""The name of the adapter, which PEFT writes into keys in some versions."""

_ROLES = tuple(
    (re.compile(rf"(?P<path>.+?)\.{ending}"), role)
    for ending, role in (
        (rf"lora_A{_NAMED}\.weight", "down"),
        (rf"lora_B{_NAMED}\.weight", "up"),
        (r"(?:lora_down|lora\.down|lora_linear_layer\.down)\.weight", "down"),
        (r"(?:lora_up|lora\.up|lora_linear_layer\.up)\.weight", "up"),
        (r"lora_mid\.weight", "mid"),
        (r"(?:lora\.|lora_linear_layer\.)?alpha", "alpha"),
        (rf"lora_magnitude_vector{_NAMED}(?:\.weight)?", "magnitude"),
        (r"dora_scale", "dora_scale"),
        *(
            (name, name)
            for name in ("hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2")
        ),
        *((name, name) for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")),
        *((name, name) for name in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")),
    )
)
"""The end of a key -> what the tensor is to its layer."""

_FLAT = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "lora_controlnet_": "controlnet",
    "lycoris_": "unet",
}
"""The start of keys in which the parts of a layer's name are joined by underscores -> the model."""

MODELS = ("unet", "text_encoder", "text_encoder_2", "controlnet", "transformer", "prior", "vae")
"""The models by whose name, and a dot, a key may start."""


@dataclass
class Piece:
    """What a file has for one layer; ``model`` is None where the keys do not say of which model it is."""

    model: str | None
    layer: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)
    """PEFT's settings of the adapter, where the file has them."""


@dataclass(frozen=True)
class Contents:
    """A file, sorted: its pieces, and the keys that are of no language that is known here."""

    pieces: tuple[Piece, ...]
    strange: tuple[str, ...]
    origin: str


def sorted_out(
    state: Mapping[str, Any],
    origin: str,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    prefix: str | None = None,
) -> Contents:
    """The pieces in a state dictionary; ``configs`` are PEFT's settings by model, or by ``""`` for any.

    With ``prefix`` only keys count that start with it and a dot, and they are of the model that is asked.
    Raises ``WeightsError`` for a value that is not a tensor.
    """
    pieces: dict[tuple[str | None, str], Piece] = {}
    strange = []
    for key, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise WeightsError(f"{origin} has a {type(tensor).__name__} as {key!r}, where a tensor belongs.")
        own = key
        if prefix is not None:
            if not key.startswith(f"{prefix}."):
                continue
            own = key.removeprefix(f"{prefix}.")
        found = _split(own)
        if found is None:
            strange.append(key)
            continue
        model, layer, role = found
        piece = pieces.setdefault((model, layer), Piece(model, layer))
        piece.tensors[role] = tensor
        piece.keys.append(key)
    configs = configs or {}
    for piece in pieces.values():
        piece.config = configs.get(prefix or piece.model or "") or configs.get("") or {}
    return Contents(tuple(pieces.values()), tuple(strange), origin)


def _split(key: str) -> tuple[str | None, str, str] | None:
    """Model, the layer's name in the file, and the tensor's role."""
    key = key.removeprefix("base_model.model.")
    for old, new in _OLD:
        key = old.sub(new, key)
    if match := _CUSTOM.fullmatch(key):
        model, path = _of_model(match["path"])
        return model, f"{path}.{match['layer']}{match['rest'] or ''}", f"whole_{match['role']}"
    for pattern, role in _ROLES:
        if match := pattern.fullmatch(key):
            path = match["path"]
            for start, model in _FLAT.items():
                if path.startswith(start):
                    return model, path.removeprefix(start), role
            return *_of_model(path), role
    return None


def _of_model(path: str) -> tuple[str | None, str]:
    """The model that a name starts with, if it does, and the rest."""
    first, _, rest = path.partition(".")
    return (first, rest) if first in MODELS and rest else (None, path)


def likely_for(contents: Contents) -> str:
    """What a file seems to be made for, as the end of a sentence; empty where there is no telling."""
    names = [key for piece in contents.pieces for key in piece.keys] + list(contents.strange)
    for signs, family in _SIGNS:
        if any(sign in name for name in names for sign in signs):
            return f" It seems to be made for {family}."
    for piece in contents.pieces:
        if piece.layer.replace(".", "_").endswith("attn2_to_k") and "down" in piece.tensors:
            width = piece.tensors["down"].shape[1]
            family = _WIDTHS.get(width, f"a UNet that reads text of {width} channels")
            return f" It seems to be made for {family}."
    return ""


_SIGNS = (
    (("double_blocks", "single_transformer_blocks", "single_blocks"), "Flux or a model of its kind"),
    (("joint_blocks", "attn.add_k_proj", "attn_add_k_proj"), "Stable Diffusion 3 or a model of its kind"),
    (("motion_modules",), "AnimateDiff"),
    (("transformer.", "lora_transformer_", "diffusion_model."), "a transformer, not a UNet"),
    (("lora_prior_", "prior."), "the prior of a two-stage model"),
)
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
