"""Small random checkpoints in the published layout, for tests that need a whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = "a red blue green big small ball cube cone on grass sand at night day left of the".split()


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> torch.nn.Module:
    """Every parameter gets random values, zero-initialised and normalisation layers included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * (fan_in**-0.5))
            else:
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(centre + scale * noise)
    return module.eval()


def tokenizer_folder(folder: Path, length: int = 16) -> Path:
    """A CLIP tokenizer whose vocabulary is the bytes and a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = [chr(c) for c in range(33, 127)]
    vocabulary = [*alphabet, *(f"{c}</w>" for c in alphabet)]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if " ".join(pair) not in merges:
                merges.append(" ".join(pair))
                vocabulary.append("".join(pair))
            pieces = ["".join(pair), *pieces[2:]]
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "sample_size": 64,
}

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def text_encoder(tokenizer: Any, seed: int = 1, **options: Any) -> torch.nn.Module:
    """A two-layer CLIP text model for ``tokenizer``."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    return randomise(CLIPTextModel(config), seed)


def stable_diffusion_parts(library: Any, folder: Path, unet: dict[str, Any] | None = None) -> dict[str, Any]:
    """The components of a Stable Diffusion checkpoint, made by ``library`` (the reference or calotype)."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder(folder / "tokenizer-source"))
    return {
        "vae": randomise(library.AutoencoderKL(**VAE), 2),
        "text_encoder": text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": randomise(library.UNet2DConditionModel(**{**UNET, **(unet or {})}), 3),
        "scheduler": library.PNDMScheduler(skip_prk_steps=True, **SCHEDULER),
        "safety_checker": None,
        "feature_extractor": None,
    }


XL_UNET = {
    **UNET,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 2),
}


def stable_diffusion_xl_parts(
    library: Any, folder: Path, refiner: bool = False, unet: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The components of an SDXL checkpoint; the refiner has the second text encoder alone."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder(folder / "tokenizer-source"))
    first = text_encoder(tokenizer)
    second = randomise(CLIPTextModelWithProjection(first.config), 7)
    second.config.projection_dim = first.config.projection_dim
    config = {
        **XL_UNET,
        "cross_attention_dim": 32 if refiner else 64,
        "projection_class_embeddings_input_dim": 8 * (5 if refiner else 6) + first.config.projection_dim,
        **(unet or {}),
    }
    return {
        "vae": randomise(library.AutoencoderKL(**VAE), 2),
        "text_encoder": None if refiner else first,
        "tokenizer": None if refiner else tokenizer,
        "text_encoder_2": second,
        "tokenizer_2": tokenizer,
        "unet": randomise(library.UNet2DConditionModel(**config), 3),
        "scheduler": library.EulerDiscreteScheduler(
            **{k: v for k, v in SCHEDULER.items() if k != "set_alpha_to_one"}
        ),
    }


def stable_diffusion_xl_folder(path: Path, library: Any, **options: Any) -> Path:
    """Save a tiny random SDXL checkpoint (or, with ``refiner=True``, a refiner) at ``path``."""
    parts = stable_diffusion_xl_parts(library, path.parent / f"{path.name}-parts", **options)
    if options.get("refiner"):
        pipe = library.StableDiffusionXLImg2ImgPipeline(
            **parts, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False
        )
    else:
        pipe = library.StableDiffusionXLPipeline(**parts)
    pipe.save_pretrained(path)
    return path


def stable_diffusion_folder(path: Path, library: Any = None, **options: Any) -> Path:
    """Save a tiny random Stable Diffusion checkpoint at ``path`` with ``library`` (calotype if not given)."""
    if library is None:
        import calotype as library
    parts = stable_diffusion_parts(library, path.parent / f"{path.name}-parts", **options)
    library.StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(path)
    return path
