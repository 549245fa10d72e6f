"""Small random checkpoints of Stable unCLIP, unCLIP and latent diffusion, made by the reference.

Each function saves its checkpoint in the folder and gives the reference's pipeline.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import (
    BertTokenizer,
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests.tiny import SCHEDULER, UNET, VAE, WORDS, randomise, text_encoder, tokenizer_folder

WIDTH = 32
PRIOR = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": WIDTH}


def tokenizer(folder: Path) -> Any:
    return CLIPTokenizer.from_pretrained(tokenizer_folder(folder / "tokenizer-source"))


def projecting_text_encoder(tokens: Any, seed: int) -> Any:
    return randomise(
        CLIPTextModelWithProjection(text_encoder(tokens, projection_dim=WIDTH).config), seed, scale=0.2
    )


def seeing() -> dict[str, Any]:
    """What sees pictures as CLIP does."""
    config = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=30,
        intermediate_size=64,
        patch_size=10,
    )
    return {
        "feature_extractor": CLIPImageProcessor(
            size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}
        ),
        "image_encoder": randomise(CLIPVisionModelWithProjection(config), 9),
    }


def prior(tokens: Any) -> Any:
    return randomise(diffusers.PriorTransformer(num_embeddings=tokens.model_max_length, **PRIOR), 8)


def stable_unclip(folder: Path, variation: bool) -> Any:
    tokens = tokenizer(folder.parent / f"{folder.name}-parts")
    unet = {
        **UNET,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2 * WIDTH,
    }
    parts = {
        "image_normalizer": randomise(StableUnCLIPImageNormalizer(embedding_dim=WIDTH), 4),
        "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "tokenizer": tokens,
        "text_encoder": text_encoder(tokens),
        "unet": randomise(diffusers.UNet2DConditionModel(**unet), 3),
        "scheduler": diffusers.DDIMScheduler(**SCHEDULER, clip_sample=False),
        "vae": randomise(diffusers.AutoencoderKL(**VAE), 2),
    }
    if variation:
        pipe = diffusers.StableUnCLIPImg2ImgPipeline(**seeing(), **parts)
    else:
        pipe = diffusers.StableUnCLIPPipeline(
            prior_tokenizer=tokens,
            prior_text_encoder=projecting_text_encoder(tokens, 6),
            prior=prior(tokens),
            prior_scheduler=diffusers.DDPMScheduler(
                variance_type="fixed_small_log",
                prediction_type="sample",
                clip_sample=True,
                clip_sample_range=5.0,
                beta_schedule="squaredcos_cap_v2",
            ),
            **parts,
        )
    pipe.save_pretrained(folder)
    return pipe


def unclip(folder: Path, variation: bool) -> Any:
    tokens = tokenizer(folder.parent / f"{folder.name}-parts")
    blocks = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    decoder = {
        **blocks,
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 6,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "resnet_time_scale_shift": "scale_shift",
        "class_embed_type": "identity",
    }
    larger = {
        **blocks,
        "sample_size": 32,
        "in_channels": 6,
        "out_channels": 3,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "resnet_time_scale_shift": "scale_shift",
    }
    parts = {
        "decoder": randomise(diffusers.UNet2DConditionModel(**decoder), 3),
        "text_encoder": projecting_text_encoder(tokens, 6),
        "tokenizer": tokens,
        "text_proj": randomise(
            UnCLIPTextProjModel(
                clip_extra_context_tokens=3,
                clip_embeddings_dim=WIDTH,
                time_embed_dim=4 * 16,
                cross_attention_dim=WIDTH,
            ),
            5,
        ),
        "super_res_first": randomise(diffusers.UNet2DModel(**larger), 11),
        "super_res_last": randomise(diffusers.UNet2DModel(**larger), 12),
        "decoder_scheduler": diffusers.UnCLIPScheduler(
            variance_type="learned_range", prediction_type="sample", num_train_timesteps=1000
        ),
        "super_res_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000
        ),
    }
    if variation:
        pipe = diffusers.UnCLIPImageVariationPipeline(**seeing(), **parts)
    else:
        pipe = diffusers.UnCLIPPipeline(
            prior=prior(tokens),
            prior_scheduler=diffusers.UnCLIPScheduler(
                variance_type="fixed_small_log",
                prediction_type="sample",
                num_train_timesteps=1000,
                clip_sample_range=5.0,
            ),
            **parts,
        )
    pipe.save_pretrained(folder)
    # as published checkpoints have it; what the reference writes it cannot read
    index = folder / "model_index.json"
    entries = json.loads(index.read_text()) | {"text_proj": ["unclip", "UnCLIPTextProjModel"]}
    index.write_text(json.dumps(entries, indent=2))
    return pipe


def bert_tokenizer(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer(vocab_file=str(folder / "vocab.txt"), model_max_length=77)


def latent_diffusion(folder: Path, vq: bool) -> Any:
    tokens = bert_tokenizer(folder.parent / f"{folder.name}-parts")
    config = LDMBertConfig(
        vocab_size=len(tokens),
        encoder_layers=2,
        encoder_ffn_dim=48,
        encoder_attention_heads=2,
        head_dim=8,
        d_model=WIDTH,
    )
    autoencoder = {
        **VAE,
        "block_out_channels": (8, 16, 16, 16),
        "norm_num_groups": 4,
        "sample_size": 32,
        "scaling_factor": 0.4,
    }
    if vq:
        autoencoder["num_vq_embeddings"] = 24
    pipe = diffusers.LDMTextToImagePipeline(
        vqvae=randomise(
            diffusers.VQModel(**autoencoder) if vq else diffusers.AutoencoderKL(**autoencoder), 2
        ),
        bert=randomise(LDMBertModel(config), 1),
        tokenizer=tokens,
        unet=randomise(diffusers.UNet2DConditionModel(**UNET), 3),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER, clip_sample=False),
    )
    pipe.save_pretrained(folder)
    return pipe


def latent_super_resolution(folder: Path) -> Any:
    unet = {
        "sample_size": 32,
        "in_channels": 6,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    vqvae = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 3,
        "num_vq_embeddings": 24,
    }
    pipe = diffusers.LDMSuperResolutionPipeline(
        vqvae=randomise(diffusers.VQModel(**vqvae), 2),
        unet=randomise(diffusers.UNet2DModel(**unet), 3),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER, clip_sample=False),
    )
    pipe.save_pretrained(folder)
    return pipe
