"""Tiny models and checkpoints shaped like Stable Video Diffusion's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.tiny import randomise

FRAMES = 3
WIDTH = 32
"""Of the embedding of a picture."""

UNETS: dict[str, dict[str, Any]] = {
    "two stages": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "num_attention_heads": (2, 4),
        "cross_attention_dim": WIDTH,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
        "layers_per_block": 1,
        "num_frames": FRAMES,
    },
    "entries for each stage": {
        "in_channels": 5,
        "out_channels": 3,
        "block_out_channels": (32, 64, 32),
        "down_block_types": (
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        "up_block_types": (
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
        ),
        "num_attention_heads": (2, 4, 8),
        "cross_attention_dim": (WIDTH, WIDTH, WIDTH),
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 64,
        "layers_per_block": (1, 2, 1),
        "transformer_layers_per_block": (2, 1, 3),
    },
}

VAES: dict[str, dict[str, Any]] = {
    "one layer": {
        "block_out_channels": (32,),
        "down_block_types": ("DownEncoderBlock2D",),
        "latent_channels": 3,
    },
    "two layers": {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "layers_per_block": 2,
        "sample_size": 16,
    },
    "three layers": {
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "layers_per_block": 3,
    },
}

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "use_karras_sigmas": True,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def stable_video(folder: Path) -> Any:
    """The reference's pipeline, saved in ``folder``; its scheduler is that of the published checkpoints."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=32,
        projection_dim=WIDTH,
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=randomise(diffusers.AutoencoderKLTemporalDecoder(**VAES["two layers"]), 1),
        image_encoder=randomise(CLIPVisionModelWithProjection(vision), 2),
        unet=randomise(diffusers.UNetSpatioTemporalConditionModel(**UNETS["two stages"]), 3),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULE),
        feature_extractor=CLIPImageProcessor(),
    )
    pipe.save_pretrained(folder)
    return pipe
