"""A tiny checkpoint shaped like I2VGen-XL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.tiny import randomise, stable_diffusion_parts

WIDTH = 32
"""Of the embeddings of texts and pictures."""

UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}


def certain(vae: torch.nn.Module) -> torch.nn.Module:
    """The autoencoder with latents that do not depend on a draw."""
    channels = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0.0
        vae.quant_conv.bias[channels:] = -30.0
    return vae


def i2vgen_xl(folder: Path) -> Any:
    """The reference's pipeline, saved in ``folder``."""
    made = stable_diffusion_parts(diffusers, folder.parent / f"{folder.name}-parts")
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=WIDTH,
    )
    pipe = diffusers.I2VGenXLPipeline(
        vae=certain(made["vae"]),
        text_encoder=made["text_encoder"],
        tokenizer=made["tokenizer"],
        image_encoder=randomise(CLIPVisionModelWithProjection(vision), 4),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
        unet=randomise(diffusers.I2VGenXLUNet(**UNET), 3),
        scheduler=diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
    )
    pipe.save_pretrained(folder)
    return pipe
