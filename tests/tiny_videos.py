"""Small random pipelines that make videos, for tests of what does not depend on the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import calotype
from tests.tiny import randomise, stable_diffusion_parts


def text_to_video(folder: Path) -> Any:
    """ModelScope's kind; what it is made of is written beside ``folder``."""
    parts = stable_diffusion_parts(calotype, folder.parent / f"{folder.name}-parts")
    unet = calotype.UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    kept: dict[str, Any] = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    return calotype.TextToVideoSDPipeline(**kept, unet=randomise(unet, 3))


def stable_video() -> Any:
    """Stable Video Diffusion's kind, of three frames."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=32,
        projection_dim=32,
    )
    unet = calotype.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(2, 4),
        cross_attention_dim=32,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        num_frames=3,
    )
    coder = calotype.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, sample_size=16
    )
    parts: dict[str, Any] = {
        "vae": randomise(coder, 1),
        "image_encoder": randomise(CLIPVisionModelWithProjection(vision), 2),
        "unet": randomise(unet, 3),
        "scheduler": calotype.EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True),
        "feature_extractor": CLIPImageProcessor(),
    }
    return calotype.StableVideoDiffusionPipeline(**parts)
