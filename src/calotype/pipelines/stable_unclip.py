"""Stable unCLIP pipelines: Stable Diffusion 2.1 that is told CLIP's embedding of a picture."""

from __future__ import annotations

from typing import ClassVar

import torch

from calotype.diffusion.family import Family
from calotype.diffusion.parts import Stage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.of_embedding import OfEmbedding, noised
from calotype.families.prior import Prior
from calotype.families.stable_unclip import StableUnCLIP, StableUnCLIPVariation
from calotype.pipelines.outputs import ImagePipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase


class StableUnCLIPBase(StableDiffusionBase):
    """What both share; abstract."""

    task = OfEmbedding()
    _optional_components: ClassVar[tuple[str, ...]] = ()
    _exclude_from_cpu_offload: ClassVar[tuple[str, ...]] = ("image_normalizer",)

    def noise_image_embeddings(
        self,
        image_embeds: torch.Tensor,
        noise_level: int,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Embeddings (batch, channels) noised to a training step, followed by the step: (batch, 2·channels)."""
        return noised(self, image_embeds, int(noise_level), noise=noise, generator=generator)


class StableUnCLIPPipeline(StableUnCLIPBase):
    """Text to image through the embedding of a picture, which a prior imagines (arXiv:2204.06125)."""

    family: ClassVar[type[Family]] = StableUnCLIP  # type: ignore[assignment]
    stages = (Stage("prior", Prior, FromNoise(), gives="image_embeds"),)
    model_cpu_offload_seq = "text_encoder->prior_text_encoder->unet->vae"
    _exclude_from_cpu_offload = ("prior", "image_normalizer")
    __init__ = constructor(StableUnCLIP)
    __call__ = call(
        "prompt height width num_inference_steps guidance_scale negative_prompt num_images_per_prompt eta generator "
        "latents prompt_embeds negative_prompt_embeds output_type return_dict callback callback_steps "
        "cross_attention_kwargs noise_level prior_num_inference_steps prior_guidance_scale prior_latents clip_skip",
        output=ImagePipelineOutput,
        num_inference_steps=20,
        guidance_scale=10.0,
        noise_level=0,
    )


class StableUnCLIPImg2ImgPipeline(StableUnCLIPBase):
    """Pictures that show what a picture shows, and a text if there is one."""

    family: ClassVar[type[Family]] = StableUnCLIPVariation  # type: ignore[assignment]
    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    __init__ = constructor(StableUnCLIPVariation)
    __call__ = call(
        "image prompt height width num_inference_steps guidance_scale negative_prompt num_images_per_prompt eta "
        "generator latents prompt_embeds negative_prompt_embeds output_type return_dict callback callback_steps "
        "cross_attention_kwargs noise_level image_embeds clip_skip",
        output=ImagePipelineOutput,
        num_inference_steps=20,
        guidance_scale=10,
        noise_level=0,
    )
