"""Pipelines with T2I-Adapters (arXiv:2302.08453), for Stable Diffusion and Stable Diffusion XL."""

from __future__ import annotations

from calotype.diffusion.controls.t2i_adapter import T2IAdapterControl
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.families.stable_diffusion import StableDiffusionWithAdapter
from calotype.families.stable_diffusion_xl import StableDiffusionXLWithAdapter
from calotype.pipelines.outputs import StableDiffusionPipelineOutput, StableDiffusionXLPipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase
from calotype.pipelines.stable_diffusion_xl import StableDiffusionXLBase

_PROMPT_XL = "negative_prompt negative_prompt_2 num_images_per_prompt eta generator latents prompt_embeds "
_PROMPT_XL += "negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds ip_adapter_image "
_PROMPT_XL += "ip_adapter_image_embeds "
_OUTPUT = "output_type return_dict callback callback_steps cross_attention_kwargs "
_SIZES = "original_size crops_coords_top_left target_size negative_original_size "
_SIZES += "negative_crops_coords_top_left negative_target_size "


class StableDiffusionAdapterPipeline(StableDiffusionBase):
    """A text and a control picture, called ``image``, to a picture."""

    family = StableDiffusionWithAdapter
    task = FromNoise(like="image")
    controls = (T2IAdapterControl(),)
    model_cpu_offload_seq = "text_encoder->adapter->unet->vae"
    __init__ = constructor(
        StableDiffusionWithAdapter,
        "vae text_encoder tokenizer unet adapter scheduler safety_checker feature_extractor requires_safety_checker",
        required="adapter",
    )
    __call__ = call(
        "prompt image height width num_inference_steps timesteps sigmas guidance_scale negative_prompt "
        "num_images_per_prompt eta generator latents prompt_embeds negative_prompt_embeds output_type return_dict "
        "callback callback_steps cross_attention_kwargs adapter_conditioning_scale clip_skip",
        output=StableDiffusionPipelineOutput,
    )


class StableDiffusionXLAdapterPipeline(StableDiffusionXLBase):
    """A text and a control picture, called ``image``, to a picture."""

    family = StableDiffusionXLWithAdapter
    task = FromNoise(like="image")
    controls = (T2IAdapterControl(),)
    model_cpu_offload_seq = "text_encoder->text_encoder_2->adapter->unet->vae"
    __init__ = constructor(
        StableDiffusionXLWithAdapter,
        "vae text_encoder text_encoder_2 tokenizer tokenizer_2 unet adapter scheduler force_zeros_for_empty_prompt "
        "feature_extractor image_encoder",
        required="adapter",
    )
    __call__ = call(
        "prompt prompt_2 image height width num_inference_steps timesteps sigmas denoising_end guidance_scale "
        + _PROMPT_XL + _OUTPUT + "guidance_rescale " + _SIZES
        + "adapter_conditioning_scale adapter_conditioning_factor clip_skip",
        output=StableDiffusionXLPipelineOutput,
        guidance_scale=5.0,
    )  # fmt: skip
