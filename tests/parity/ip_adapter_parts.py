"""Random IP-Adapters in the layout of the published files, and an image encoder for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.parity.pipeline_runs import seeded
from tests.tiny import randomise

EMBED, STATE, FACE = 24, 32, 20
"""Channels of the encoder's embedding, of its states, and of the embedding of a face."""
PATCHES = 5
"""The encoder's states: four patches and the class."""


def image_encoder_folder(path: Path) -> Path:
    """A two-layer CLIP vision model."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=STATE,
        intermediate_size=48,
        projection_dim=EMBED,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=16,
    )
    randomise(CLIPVisionModelWithProjection(config), 11).save_pretrained(path)
    return path


def shapes(kind: str, context: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a projection of pictures in files."""
    norm = {"norm.weight": (context,), "norm.bias": (context,)}
    if kind == "plain":
        return {"proj.weight": (4 * context, EMBED), "proj.bias": (4 * context,), **norm}
    if kind == "full face":
        return {
            "proj.0.weight": (STATE, STATE), "proj.0.bias": (STATE,),
            "proj.2.weight": (context, STATE), "proj.2.bias": (context,),
            "proj.3.weight": (context,), "proj.3.bias": (context,),
        }  # fmt: skip
    face = {
        "proj.0.weight": (2 * FACE, FACE), "proj.0.bias": (2 * FACE,),
        "proj.2.weight": (4 * context, 2 * FACE), "proj.2.bias": (4 * context,),
    }  # fmt: skip
    if kind == "face":
        return {**face, **norm}
    if kind == "face plus":
        resampler = perceiver(context, context)
        return {**face, **norm, **{f"perceiver_resampler.{key}": value for key, value in resampler.items()}}
    assert kind == "plus"
    return {"latents": (1, 6, 16), **perceiver(16, context)}


def perceiver(dim: int, context: int) -> dict[str, tuple[int, ...]]:
    """Four layers with one head of the width that all published ones have."""
    found: dict[str, tuple[int, ...]] = {
        "proj_in.weight": (dim, STATE), "proj_in.bias": (dim,),
        "proj_out.weight": (context, dim), "proj_out.bias": (context,),
        "norm_out.weight": (context,), "norm_out.bias": (context,),
    }  # fmt: skip
    for layer in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            found |= {f"layers.{layer}.{norm}.weight": (dim,), f"layers.{layer}.{norm}.bias": (dim,)}
        found |= {
            f"layers.{layer}.0.to_q.weight": (64, dim),
            f"layers.{layer}.0.to_kv.weight": (128, dim),
            f"layers.{layer}.0.to_out.weight": (dim, 64),
            f"layers.{layer}.1.1.weight": (4 * dim, dim),
            f"layers.{layer}.1.3.weight": (dim, 4 * dim),
        }
    return found


def adapter(unet: Any, kind: str, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """An adapter for a UNet of either library, as the published pickles have it."""
    generator = seeded(seed)

    def values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            return noise * shape[-1] ** -0.5
        norms = ("norm", "proj.3.", "1.0.")
        return 0.2 * noise + (name.endswith("weight") and any(part in name for part in norms))

    context = unet.config.cross_attention_dim
    matrices = {}
    sides = ("down_blocks", "up_blocks", "mid_block")
    names = sorted(unet.attn_processors, key=lambda name: sides.index(name.split(".")[0]))
    for number, name in enumerate(names):
        if "attn2" in name:
            width = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            for part in ("to_k_ip", "to_v_ip"):
                matrices[f"{number}.{part}.weight"] = values("", (width, context)) * 3
        if "face" in kind and kind != "full face":
            layer = unet.get_submodule(name.removesuffix(".processor"))
            for part in ("to_q", "to_k", "to_v", "to_out"):
                linear = layer.to_out[0] if part == "to_out" else getattr(layer, part)
                matrices[f"{number}.{part}_lora.down.weight"] = values("", (2, linear.in_features))
                matrices[f"{number}.{part}_lora.up.weight"] = values("", (linear.out_features, 2)) * 0.3
    projection = {name: values(name, shape) for name, shape in shapes(kind, context).items()}
    return {"image_proj": projection, "ip_adapter": matrices}


def save(adapter: dict[str, dict[str, torch.Tensor]], path: Path) -> Path:
    """Write an adapter with dotted names (``.safetensors``) or as a pickle of two dictionaries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({f"{part}.{k}": v for part, state in adapter.items() for k, v in state.items()}, path)
    else:
        torch.save(adapter, path)
    return path
