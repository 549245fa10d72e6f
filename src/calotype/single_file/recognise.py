"""What a checkpoint in the original layout is: the parts that it has, and their configurations, from names and shapes.

What shapes do not tell are conventions of the families: eight heads where the attention's projections are convolutions
(Stable Diffusion 1), heads of 64 channels where they are linear (2 and XL).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from calotype.core.errors import ModelFilesError
from calotype.core.safetensors_header import TensorInfo

Infos = Mapping[str, TensorInfo]

PREFIXES = {
    "unet": ("model.diffusion_model.", ""),
    "controlnet": ("control_model.", ""),
    "vae": ("first_stage_model.", ""),
}
"""Component -> what its keys begin with: in a whole checkpoint, and in a file of its own."""

_TELLS = {
    "unet": "output_blocks.0.0.in_layers.0.weight",
    "controlnet": "input_hint_block.0.weight",
    "vae": "decoder.mid.block_1.norm1.weight",
}
_TEXTS = {
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
    "conditioner.embedders.0.model.": "text_encoder_2",
}


@dataclass(frozen=True)
class Family:
    """A family of checkpoints; ``pipeline`` is the class that its files are for."""

    name: str
    pipeline: str
    scaling_factor: float
    sample_size: int
    tokens_from: str
    """The repository whose tokenizers it uses."""


FAMILIES = {
    name: Family(name, f"StableDiffusion{pipeline}Pipeline", scale, size, repository)
    for name, pipeline, scale, size, repository in (
        ("sd1", "", 0.18215, 64, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("sd1-inpainting", "Inpaint", 0.18215, 64, "stable-diffusion-v1-5/stable-diffusion-inpainting"),
        ("sd2", "", 0.18215, 96, "stabilityai/stable-diffusion-2-1"),
        ("sd2-inpainting", "Inpaint", 0.18215, 64, "stabilityai/stable-diffusion-2-inpainting"),
        ("sdxl", "XL", 0.13025, 128, "stabilityai/stable-diffusion-xl-base-1.0"),
        ("sdxl-inpainting", "XLInpaint", 0.13025, 128, "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"),
        ("sdxl-refiner", "XLImg2Img", 0.13025, 128, "stabilityai/stable-diffusion-xl-refiner-1.0"),
    )
}


def prefix_of(component: str, infos: Infos, origin: str) -> str:
    """What the keys of a component begin with; ``ModelFilesError`` if it is not in the file."""
    for prefix in PREFIXES[component]:
        if prefix + _TELLS[component] in infos:
            return prefix
    if any(key.startswith(("down_blocks.", "encoder.down_blocks.")) for key in infos):
        raise ModelFilesError(
            f"{origin} is not in the original layout but in that of a model folder: put it beside its config.json as "
            f"diffusion_pytorch_model.safetensors and load the folder with from_pretrained."
        )
    raise ModelFilesError(
        f"{origin} has no {component} in the original layout of Stable Diffusion: there is no key "
        f"{' or '.join(repr(prefix + _TELLS[component]) for prefix in PREFIXES[component])}."
    )


@contextmanager
def complete(component: str, origin: str) -> Iterator[None]:
    """Within this, layers that a configuration is told from and that are not there are a ``ModelFilesError``."""
    try:
        yield
    except (LookupError, StopIteration, ValueError) as error:
        raise ModelFilesError(
            f"The {component} in {origin} is not complete: what it is made of cannot be told ({error})."
        ) from error


def text_parts(infos: Infos) -> dict[str, str]:
    """Prefix -> component, of the text encoders in a checkpoint."""
    return {prefix: name for prefix, name in _TEXTS.items() if any(key.startswith(prefix) for key in infos)}


def family_of(infos: Infos, origin: str) -> Family:
    """The family of a whole checkpoint."""
    prefix = prefix_of("unet", infos, origin)
    with complete("unet", origin):
        config = unet_config(infos, prefix)
    inpaints = config["in_channels"] == 9
    width = config["cross_attention_dim"]
    kinds = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
    if any(key.startswith("conditioner.") for key in infos):
        base = "sdxl" if "conditioner.embedders.1.model.ln_final.weight" in infos else "sdxl-refiner"
    elif any(key.startswith("cond_stage_model.model.") for key in infos):
        base = "sd2"
    elif any(key.startswith("cond_stage_model.transformer.") for key in infos):
        base = "sd1"
    elif width in kinds:
        base = kinds[width]
    else:
        raise ModelFilesError(
            f"{origin} is of no family that is known: its U-Net attends to {width} channels and it has no text encoder."
        )
    return FAMILIES[f"{base}-inpainting" if inpaints else base]


def unet_config(infos: Infos, prefix: str) -> dict[str, Any]:
    """The configuration of a U-Net."""
    encoder = _encoder(infos, prefix)
    down = encoder["down_block_types"]
    return {
        **encoder,
        "out_channels": infos[f"{prefix}out.2.weight"].shape[0],
        "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(down)),
        "sample_size": {768: 64, 1024: 96}.get(encoder["cross_attention_dim"], 128),
    }


def controlnet_config(infos: Infos, prefix: str) -> dict[str, Any]:
    """The configuration of a ControlNet."""
    encoder = _encoder(infos, prefix)
    hint = sorted(
        int(match[1])
        for key in infos
        if (match := re.fullmatch(rf"{re.escape(prefix)}input_hint_block\.(\d+)\.weight", key))
    )
    shapes = [infos[f"{prefix}input_hint_block.{index}.weight"].shape for index in hint]
    widths = [shapes[0][0], *(shape[0] for shape in shapes[2:-1:2])]
    return {
        **encoder,
        "conditioning_channels": shapes[0][1],
        "conditioning_embedding_out_channels": tuple(widths),
    }


def _encoder(infos: Infos, prefix: str) -> dict[str, Any]:
    """What U-Nets and ControlNets have in common, read off the numbered layers."""
    blocks: list[list[tuple[int, int]]] = [[]]
    number = 1
    while any(f"{prefix}input_blocks.{number}.0.{name}.weight" in infos for name in ("op", "in_layers.0")):
        at = f"{prefix}input_blocks.{number}"
        if f"{at}.0.op.weight" in infos:
            blocks.append([])
        else:
            blocks[-1].append((infos[f"{at}.0.out_layers.3.weight"].shape[0], _depth(infos, f"{at}.1")))
        number += 1
    channels = [block[0][0] for block in blocks]
    depths = [block[0][1] for block in blocks]
    middle = _depth(infos, f"{prefix}middle_block.1")
    attention = next(key for key in infos if key.startswith(prefix) and key.endswith("attn2.to_k.weight"))
    linear = next(
        len(info.shape) == 2
        for key, info in infos.items()
        if key.startswith(prefix) and key.endswith(".proj_in.weight")
    )
    same = {depth for depth in (*depths, middle) if depth}
    told = [depth or (middle if index == len(depths) - 1 else 1) for index, depth in enumerate(depths)]
    config: dict[str, Any] = {
        "in_channels": infos[f"{prefix}input_blocks.0.0.weight"].shape[1],
        "block_out_channels": tuple(channels),
        "layers_per_block": len(blocks[0]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "cross_attention_dim": infos[attention].shape[1],
        "transformer_layers_per_block": same.pop() if len(same) == 1 else tuple(told),
        "attention_head_dim": tuple(max(width // 64, 1) for width in channels) if linear else 8,
        "use_linear_projection": linear,
    }
    return {**config, **_embeddings(infos, prefix, config["cross_attention_dim"])}


def _depth(infos: Infos, at: str) -> int:
    """How many transformer blocks stand at a place."""
    found = re.compile(rf"{re.escape(at)}\.transformer_blocks\.(\d+)\.")
    return max((int(match[1]) + 1 for key in infos if (match := found.match(key))), default=0)


def _embeddings(infos: Infos, prefix: str, width: int) -> dict[str, Any]:
    """What the network is told beside the time."""
    if (table := infos.get(f"{prefix}label_emb.weight")) is not None:
        return {"num_class_embeds": table.shape[0]}
    first = infos.get(f"{prefix}label_emb.0.0.weight")
    if first is None:
        return {}
    projected = {"projection_class_embeddings_input_dim": first.shape[1]}
    if width == 1024:  # Stable unCLIP is told of a picture, XL of sizes
        return {"class_embed_type": "projection", **projected}
    return {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, **projected}


def vae_config(infos: Infos, prefix: str, family: Family | None = None) -> dict[str, Any]:
    """The configuration of an autoencoder; its scale is that of ``family``, by default of the first."""
    encoder = f"{prefix}encoder"
    widths: list[int] = []
    while f"{encoder}.down.{len(widths)}.block.0.conv1.weight" in infos:
        widths.append(infos[f"{encoder}.down.{len(widths)}.block.0.conv1.weight"].shape[0])
    layers = 0
    while f"{encoder}.down.0.block.{layers}.conv1.weight" in infos:
        layers += 1
    chosen = family or FAMILIES["sd1"]
    return {
        "in_channels": infos[f"{encoder}.conv_in.weight"].shape[1],
        "out_channels": infos[f"{prefix}decoder.conv_out.weight"].shape[0],
        "latent_channels": infos[f"{prefix}decoder.conv_in.weight"].shape[1],
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "use_quant_conv": f"{prefix}quant_conv.weight" in infos,
        "use_post_quant_conv": f"{prefix}post_quant_conv.weight" in infos,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "scaling_factor": chosen.scaling_factor,
        "sample_size": chosen.sample_size * 8,
    }
