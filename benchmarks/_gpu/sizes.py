"""The configurations of models of full size, and of tiny ones that show that a benchmark runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
CLIP_L = {"vocab_size": 49408, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
BIG_G = {"vocab_size": 49408, "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20}


@dataclass(frozen=True)
class Sizes:
    """Configurations by the names that :class:`benchmarks._gpu.stock.Stock` has; what sides are divided by."""

    models: dict[str, tuple[str, dict[str, Any]]]
    """The class and its arguments."""
    encoders: tuple[dict[str, Any], dict[str, Any]]
    """The first text encoder, and the second, which projects."""
    tokens: int
    divisor: int = 1
    most_steps: int | None = None

    def side(self, pixels: int) -> int:
        return pixels // self.divisor

    def steps(self, asked: int) -> int:
        return asked if self.most_steps is None else min(asked, self.most_steps)


FULL = Sizes(
    {
        "unet": ("UNet2DConditionModel", {"cross_attention_dim": 768, "sample_size": 64}),
        "xl_unet": ("UNet2DConditionModel", SDXL),
        "vae": ("AutoencoderKL", {**VAE}),
        "controlnet": ("ControlNetModel", {"cross_attention_dim": 768}),
    },
    (CLIP_L, BIG_G),
    77,
)


def tiny() -> Sizes:
    """Models of a few channels, an eighth of each side and at most two steps, for any processor."""
    from tests.tiny import UNET, VAE, XL_UNET

    encoder: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shared = {name: UNET[name] for name in ("block_out_channels", "down_block_types", "layers_per_block")}
    shared |= {name: UNET[name] for name in ("cross_attention_dim", "attention_head_dim", "norm_num_groups")}
    added = 6 * XL_UNET["addition_time_embed_dim"] + encoder["hidden_size"]
    xl = {**XL_UNET, "cross_attention_dim": 64, "projection_class_embeddings_input_dim": added}
    return Sizes(
        {
            "unet": ("UNet2DConditionModel", {**UNET}),
            "xl_unet": ("UNet2DConditionModel", xl),
            "vae": ("AutoencoderKL", {**VAE}),
            "controlnet": (
                "ControlNetModel",
                {**shared, "conditioning_embedding_out_channels": (8, 8, 8, 8)},
            ),
        },
        (encoder, encoder),
        16,
        divisor=8,
        most_steps=2,
    )
