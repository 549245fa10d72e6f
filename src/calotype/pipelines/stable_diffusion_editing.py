"""Stable Diffusion pipelines that edit a picture, keep its depth, enlarge it or vary it."""

from __future__ import annotations

from inspect import Parameter

from calotype.diffusion.tasks.depth import FromImageAndDepth
from calotype.diffusion.tasks.edit import Edit
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.upscale import Upscale
from calotype.diffusion.tasks.upscale_latents import UpscaleLatents
from calotype.families.image_variation import ImageVariation
from calotype.families.latent_upscaler import LatentUpscaler
from calotype.families.stable_diffusion_variants import StableDiffusionDepth, StableDiffusionUpscaler
from calotype.pipelines.outputs import ImagePipelineOutput, StableDiffusionPipelineOutput
from calotype.pipelines.pictures import PicturePipeline
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase


class StableDiffusionInstructPix2PixPipeline(StableDiffusionBase):
    """A picture edited as a text says (arXiv:2211.09800)."""

    task = Edit()
    __call__ = call(
        "prompt image num_inference_steps guidance_scale image_guidance_scale negative_prompt num_images_per_prompt "
        "eta generator latents prompt_embeds negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds "
        "output_type return_dict callback_on_step_end callback_on_step_end_tensor_inputs cross_attention_kwargs",
        output=StableDiffusionPipelineOutput,
        earlier_callback=True,
        num_inference_steps=100,
    )


class StableDiffusionDepth2ImgPipeline(StableDiffusionBase):
    """A picture and a text to a picture of the same depth; the depth is given or estimated."""

    family = StableDiffusionDepth
    task = FromImageAndDepth()
    _optional_components = ()
    __init__ = constructor(StableDiffusionDepth)
    __call__ = call(
        "prompt image depth_map strength num_inference_steps guidance_scale negative_prompt num_images_per_prompt eta "
        "generator prompt_embeds negative_prompt_embeds output_type return_dict cross_attention_kwargs clip_skip "
        "callback_on_step_end callback_on_step_end_tensor_inputs",
        output=ImagePipelineOutput,
        earlier_callback=True,
    )


class StableDiffusionUpscalePipeline(StableDiffusionBase):
    """A picture four times as large, with the detail that a text asks for."""

    family = StableDiffusionUpscaler
    task = Upscale()
    _optional_components = ("watermarker", "safety_checker", "feature_extractor")
    __init__ = constructor(StableDiffusionUpscaler)
    __call__ = call(
        "prompt image num_inference_steps guidance_scale noise_level negative_prompt num_images_per_prompt eta "
        "generator latents prompt_embeds negative_prompt_embeds output_type return_dict callback callback_steps "
        "cross_attention_kwargs clip_skip",
        output=StableDiffusionPipelineOutput,
        num_inference_steps=75,
        guidance_scale=9.0,
    )


class StableDiffusionImageVariationPipeline(PicturePipeline):
    """Pictures that show what a picture shows, from CLIP's embedding of it."""

    family = ImageVariation
    task = FromNoise()
    model_cpu_offload_seq = "image_encoder->unet->vae"
    _optional_components = ("safety_checker",)
    _exclude_from_cpu_offload = ("safety_checker",)
    __init__ = constructor(ImageVariation)
    __call__ = call(
        "image height width num_inference_steps guidance_scale num_images_per_prompt eta generator latents output_type "
        "return_dict callback callback_steps",
        output=StableDiffusionPipelineOutput,
        image=Parameter.empty,
    )


class StableDiffusionLatentUpscalePipeline(PicturePipeline):
    """A picture, or the latents of one, twice as large."""

    family = LatentUpscaler
    task = UpscaleLatents()
    model_cpu_offload_seq = "text_encoder->unet->vae"
    __init__ = constructor(LatentUpscaler)
    __call__ = call(
        "prompt image num_inference_steps guidance_scale negative_prompt generator latents prompt_embeds "
        "negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds output_type return_dict callback "
        "callback_steps",
        output=ImagePipelineOutput,
        num_inference_steps=75,
        guidance_scale=9.0,
    )
