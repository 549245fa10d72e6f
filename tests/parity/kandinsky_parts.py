"""Components of tiny random Kandinsky checkpoints, made by the reference."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.tiny import randomise, tokenizer_folder

EMBED = 16
"""Channels of the embeddings of pictures."""

MOVQ = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (32, 32, 32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
    "norm_num_groups": 8,
    "norm_type": "spatial",
    "num_vq_embeddings": 12,
    "vq_embed_dim": 4,
}

UNET = {
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
}

UNET_2_2 = {
    **UNET,
    "addition_embed_type": "image",
    "encoder_hid_dim": EMBED,
    "encoder_hid_dim_type": "image_proj",
}

CHAIN = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


def movq() -> Any:
    return randomise(diffusers.VQModel(**MOVQ), 2)


def calm(unet: torch.nn.Module) -> torch.nn.Module:
    """A random denoiser with predictions so small that rounding does not grow from step to step."""
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.25)
    return unet


def decoder_2_2(scheduler: str = "DDPMScheduler", **unet: Any) -> dict[str, Any]:
    """UNet, scheduler and MoVQ of a decoder as published: a variance is learned, which DDPM's steps read."""
    options: dict[str, Any] = {"clip_sample": True, "clip_sample_range": 2.0}
    if scheduler == "DDPMScheduler":
        options["variance_type"] = "learned_range"
    return {
        "unet": calm(randomise(diffusers.UNet2DConditionModel(**{**UNET_2_2, **unet}), 3)),
        "scheduler": getattr(diffusers, scheduler)(**CHAIN, **options),
        "movq": movq(),
    }


PRIOR = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "embedding_dim": EMBED,
    "num_embeddings": 16,
    "additional_embeddings": 4,
}


def prior(folder: Path) -> dict[str, Any]:
    """The components of a prior."""
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder(folder / "tokenizer-source"))
    sizes = {
        "hidden_size": EMBED,
        "intermediate_size": 24,
        "projection_dim": EMBED,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    return {
        "prior": randomise(diffusers.PriorTransformer(**PRIOR), 4),
        "image_encoder": randomise(CLIPVisionModelWithProjection(vision), 6),
        "text_encoder": randomise(CLIPTextModelWithProjection(text), 7),
        "tokenizer": tokenizer,
        "scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            num_train_timesteps=1000,
            clip_sample_range=5.0,
        ),
        "image_processor": CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    }


def shape(library: Any, name: str, method: str) -> list[tuple[Any, ...]]:
    """Names, kinds and defaults of a method's arguments, in order."""
    parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
    return [
        (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default) for p in parameters
    ]
