"""Tiny checkpoints of models for videos, and videos to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.parity.pipeline_runs import quiet, seeded
from tests.tiny import randomise, stable_diffusion_parts

UNET_3D: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}


def parts(library: Any, folder: Path, **unet: Any) -> dict[str, Any]:
    """The components of a text-to-video checkpoint, made by ``library`` (the reference or calotype)."""
    made = stable_diffusion_parts(library, folder)
    kept = {name: made[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    return {**kept, "unet": randomise(library.UNet3DConditionModel(**{**UNET_3D, **unet}), 3)}


def pair(
    name: str, folder: Path, library_pair: tuple[Any, Any], scheduler: str | None = None
) -> tuple[Any, Any]:
    """The pipeline ``name`` of both libraries from one folder, with another scheduler if one is named."""
    pipes = []
    for library in library_pair:
        pipe = quiet(getattr(library, name).from_pretrained(folder))
        if scheduler is not None:
            pipe.scheduler = getattr(library, scheduler).from_config(pipe.scheduler.config)
        pipes.append(pipe)
    return pipes[0], pipes[1]


def clip(frames: int = 3, side: int = 64, seed: int = 5) -> torch.Tensor:
    """Smooth pictures that change from frame to frame, (frames, 3, side, side) in [0, 1]."""
    coarse = torch.rand(1, 3, frames, 5, 6, generator=seeded(seed))
    video = torch.nn.functional.interpolate(coarse, size=(frames, side, side), mode="trilinear")
    return video[0].transpose(0, 1).contiguous()


def as_array(video: torch.Tensor) -> np.ndarray:
    """The video as an array (frames, height, width, 3)."""
    return video.permute(0, 2, 3, 1).numpy()


UNET_MOTION: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "num_attention_heads": 4,
    "motion_num_attention_heads": 2,
    "norm_num_groups": 8,
}

ADAPTER: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "motion_layers_per_block": 1,
    "motion_num_attention_heads": 2,
    "motion_norm_num_groups": 8,
    "motion_max_seq_length": 24,
}
"""A motion adapter for the tiny Stable Diffusion checkpoint."""
