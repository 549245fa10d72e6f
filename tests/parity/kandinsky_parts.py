"""Components of tiny random Kandinsky checkpoints, made by the reference."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from tests.parity.pipeline_runs import seeded
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
    """A random MoVQ whose norms are modulated by a fraction, as trained ones are, so that rounding does not grow."""
    model = randomise(diffusers.VQModel(**MOVQ), 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("conv_y.weight", "conv_b.weight")):
                parameter.mul_(0.1)
            if name.endswith("conv_y.bias"):
                parameter.add_(1.0)
    return model


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


UNET_2_1 = {
    **UNET,
    "addition_embed_type": "text_image",
    "encoder_hid_dim": EMBED,
    "encoder_hid_dim_type": "text_image_proj",
    "cross_attention_dim": EMBED,
}


def vocabulary(*marks: str) -> list[tuple[str, float]]:
    """Marks, a few words and the letters, with their scores."""
    words = [(f"\u2581{word}", -1.0 - 0.1 * i) for i, word in enumerate(("a", "red", "ball", "cube"))]
    letters = [(letter, -3.0 - 0.01 * i) for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")]
    return [*((mark, 0.0) for mark in marks), ("\u2581", -2.0), *words, *letters]


def multilingual_tokenizer() -> Any:
    from transformers import XLMRobertaTokenizer

    vocab = [*vocabulary("<s>", "<pad>", "</s>", "<unk>"), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=77)


UNET_3 = {
    "in_channels": 4,
    "time_embedding_dim": 32,
    "groups": 2,
    "attention_head_dim": 4,
    "layers_per_block": 2,
    "block_out_channels": (8, 16, 24, 24),
    "cross_attention_dim": 12,
    "encoder_hid_dim": EMBED,
}


def kandinsky_3() -> dict[str, Any]:
    """All components of Kandinsky 3."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    tokenizer = T5Tokenizer(vocab=vocabulary("<pad>", "</s>", "<unk>"), extra_ids=0, model_max_length=128)
    config = T5Config(vocab_size=len(tokenizer), d_model=EMBED, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    return {
        "tokenizer": tokenizer,
        "text_encoder": randomise(T5EncoderModel(config), 9),
        "unet": calm(randomise(diffusers.Kandinsky3UNet(**UNET_3), 3)),
        "scheduler": diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=2.0
        ),
        "movq": movq(),
    }


def decoder_2_1(**unet: Any) -> dict[str, Any]:
    """Text encoder, tokenizer, UNet, scheduler and MoVQ of a decoder of Kandinsky 2.1."""
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    tokenizer = multilingual_tokenizer()
    config = MCLIPConfig(
        vocab_size=len(tokenizer),
        hidden_size=EMBED,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=80,
        transformerDimSize=EMBED,
        imageDimSize=EMBED,
    )
    return {
        "text_encoder": randomise(MultilingualCLIP(config), 8),
        "tokenizer": tokenizer,
        "unet": calm(randomise(diffusers.UNet2DConditionModel(**{**UNET_2_1, **unet}), 3)),
        "scheduler": diffusers.DDIMScheduler(
            **CHAIN, steps_offset=1, clip_sample=False, set_alpha_to_one=False
        ),
        "movq": movq(),
    }


def noise(*size: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*size, generator=seeded(seed))


def photo(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def mask(width: int = 64, height: int = 64, left: int = 24) -> Image.Image:
    white = np.zeros((height, width), dtype=np.uint8)
    white[20:50, left:52] = 255
    return Image.fromarray(white)


def two(width: int = EMBED) -> dict[str, Any]:
    """The embeddings of two pictures."""
    return {"image_embeds": noise(2, width), "negative_image_embeds": noise(2, width, seed=6)}


def shape(library: Any, name: str, method: str) -> list[tuple[Any, ...]]:
    """Names, kinds and defaults of a method's arguments, in order."""
    parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
    return [
        (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default) for p in parameters
    ]
