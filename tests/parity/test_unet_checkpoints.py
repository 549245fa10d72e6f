"""The architectures of published checkpoints at full size: the same keys and shapes, without values."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

import calotype

XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
IF = {
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "attention_head_dim": 64,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
    "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
    "layers_per_block": 3,
}
KANDINSKY = {
    "attention_head_dim": 64,
    "block_out_channels": (384, 768, 1152, 1536),
    "cross_attention_dim": 768,
    "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
    "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 8,
    "resnet_time_scale_shift": "scale_shift",
    "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
    "sample_size": 64,
}
CONDITIONAL: dict[str, dict[str, Any]] = {
    "stable-diffusion-v1-5": {"sample_size": 64, "cross_attention_dim": 768},
    "stable-diffusion-inpainting": {"sample_size": 64, "cross_attention_dim": 768, "in_channels": 9},
    "stable-diffusion-2-1": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "stable-diffusion-2-1-unclip": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2048,
    },
    "stable-diffusion-x4-upscaler": {
        "attention_head_dim": 8,
        "block_out_channels": (256, 512, 512, 1024),
        "cross_attention_dim": 1024,
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
        "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
        "in_channels": 7,
        "num_class_embeds": 1000,
        "only_cross_attention": (True, True, True, False),
        "use_linear_projection": True,
    },
    "sd-x2-latent-upscaler": {
        "act_fn": "gelu",
        "attention_head_dim": 64,
        "block_out_channels": (384, 384, 768, 768),
        "conv_in_kernel": 1,
        "conv_out_kernel": 1,
        "cross_attention_dim": 768,
        "down_block_types": ("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        "in_channels": 8,
        "layers_per_block": 4,
        "mid_block_type": None,
        "norm_num_groups": None,
        "only_cross_attention": (False, False, False, False),
        "out_channels": 5,
        "resnet_time_scale_shift": "scale_shift",
        "time_cond_proj_dim": 896,
        "time_embedding_type": "fourier",
        "timestep_post_act": "gelu",
        "up_block_types": (*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
    },
    "stable-diffusion-xl-base": {**XL, "transformer_layers_per_block": (1, 2, 10)},
    "stable-diffusion-xl-refiner": {
        **XL,
        "attention_head_dim": (6, 12, 24, 24),
        "block_out_channels": (384, 768, 1536, 1536),
        "cross_attention_dim": 1280,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "projection_class_embeddings_input_dim": 2560,
        "transformer_layers_per_block": 4,
    },
    "ssd-1b": {
        **XL,
        "mid_block_type": None,
        "transformer_layers_per_block": ((0, 0), (2, 2), (4, 4)),
        "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), (0, 0, 0)),
    },
    "lcm": {"cross_attention_dim": 768, "time_cond_proj_dim": 256},
    "if-i-xl": {
        **IF,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": (704, 1408, 2112, 2816),
        "cross_attention_dim": 2816,
    },
    "if-ii-l": {
        **IF,
        "in_channels": 6,
        "out_channels": 6,
        "block_out_channels": (256, 512, 768, 1024, 1280),
        "down_block_types": (*["ResnetDownsampleBlock2D"] * 3, *["SimpleCrossAttnDownBlock2D"] * 2),
        "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 2, *["ResnetUpsampleBlock2D"] * 3),
        "class_embed_type": "timestep",
        "cross_attention_dim": 1280,
        "layers_per_block": (3, 3, 3, 3, 2),
        "only_cross_attention": True,
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1.4142,
    },
    "kandinsky-2-1": {
        **KANDINSKY,
        "addition_embed_type": "text_image",
        "encoder_hid_dim": 1024,
        "encoder_hid_dim_type": "text_image_proj",
    },
    "kandinsky-2-2-decoder": {
        **KANDINSKY,
        "addition_embed_type": "image",
        "encoder_hid_dim": 1280,
        "encoder_hid_dim_type": "image_proj",
    },
    "kandinsky-2-2-controlnet-depth": {
        **KANDINSKY,
        "in_channels": 8,
        "addition_embed_type": "image_hint",
        "encoder_hid_dim": 1280,
        "encoder_hid_dim_type": "image_proj",
    },
    "audioldm": {
        "block_out_channels": (128, 256, 384, 640),
        "cross_attention_dim": (128, 256, 384, 640),
        "in_channels": 8,
        "out_channels": 8,
        "class_embed_type": "simple_projection",
        "class_embeddings_concat": True,
        "projection_class_embeddings_input_dim": 512,
    },
    "gligen": {"cross_attention_dim": 768, "attention_type": "gated"},
    "versatile-diffusion": {"cross_attention_dim": 768, "dual_cross_attention": True},
}
UNCONDITIONAL: dict[str, dict[str, Any]] = {
    "ddpm-cifar10-32": {
        "sample_size": 32,
        "attention_head_dim": None,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "ddpm-celebahq-256": {
        "sample_size": 256,
        "attention_head_dim": None,
        "block_out_channels": (128, 128, 256, 256, 512, 512),
        "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "ldm-celebahq-256": {
        "sample_size": 64,
        "attention_head_dim": 32,
        "block_out_channels": (224, 448, 672, 896),
        "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
        "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    },
    "ncsnpp-celebahq-256": {
        "sample_size": 256,
        "attention_head_dim": None,
        "block_out_channels": (128, 128, 256, 256, 256, 256, 256),
        "down_block_types": (*["SkipDownBlock2D"] * 4, "AttnSkipDownBlock2D", *["SkipDownBlock2D"] * 2),
        "up_block_types": (*["SkipUpBlock2D"] * 2, "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 4),
        "mid_block_scale_factor": 2**0.5,
        "norm_eps": 1e-6,
        "time_embedding_type": "fourier",
    },
    "cd-imagenet64": {
        "sample_size": 64,
        "attention_head_dim": 64,
        "block_out_channels": (192, 384, 576, 768),
        "down_block_types": ("ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3),
        "up_block_types": (*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "layers_per_block": 3,
        "num_class_embeds": 1000,
        "resnet_time_scale_shift": "scale_shift",
    },
}
TABLE = [("UNet2DConditionModel", name, config) for name, config in CONDITIONAL.items()] + [
    ("UNet2DModel", name, config) for name, config in UNCONDITIONAL.items()
]


@pytest.mark.parametrize(("cls", "name", "config"), TABLE, ids=[name for _, name, _ in TABLE])
def test_same_keys_at_full_size(cls: str, name: str, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        theirs = getattr(diffusers, cls)(**config)
        ours = getattr(calotype, cls)(**config)
    expected = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == expected

    def numbers(model: torch.nn.Module, *names: str) -> dict[str, tuple[Any, ...]]:
        return {
            key: tuple(getattr(part, name) for name in names)
            for key, part in model.named_modules()
            if all(hasattr(part, name) for name in names)
        }

    # what shapes don't show: how channels are cut into heads and groups, and the norms' epsilon
    assert numbers(ours, "heads", "scale") == numbers(theirs, "heads", "scale")
    assert numbers(ours, "num_groups", "eps") == numbers(theirs, "num_groups", "eps")
    assert numbers(ours, "output_scale_factor") == numbers(theirs, "output_scale_factor")
