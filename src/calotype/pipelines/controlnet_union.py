"""Stable Diffusion XL with ControlNet Union, which reads pictures of several kinds."""

from __future__ import annotations

from calotype.diffusion.controls.controlnet_union import ControlNetUnion
from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.inpaint import Inpaint
from calotype.families.stable_diffusion_xl import (
    StableDiffusionXLFromImageWithControlNet,
    StableDiffusionXLWithControlNet,
)
from calotype.pipelines.outputs import StableDiffusionXLPipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion_xl import StableDiffusionXLBase

_PARTS = "vae text_encoder text_encoder_2 tokenizer tokenizer_2 unet controlnet scheduler "
_OPTIONS = "force_zeros_for_empty_prompt add_watermarker feature_extractor image_encoder"

_TEXT = "negative_prompt negative_prompt_2 num_images_per_prompt eta generator latents prompt_embeds "
_TEXT += "negative_prompt_embeds "
_POOLED = "pooled_prompt_embeds negative_pooled_prompt_embeds "
_ADAPTER = "ip_adapter_image ip_adapter_image_embeds "
_CONTROL = "output_type return_dict cross_attention_kwargs controlnet_conditioning_scale guess_mode "
_CONTROL += "control_guidance_start control_guidance_end control_mode "
_SIZES = "original_size crops_coords_top_left target_size "
_NEGATIVE_SIZES = "negative_original_size negative_crops_coords_top_left negative_target_size "
_SCORES = "aesthetic_score negative_aesthetic_score "
_LAST = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"


class StableDiffusionXLControlNetUnionPipeline(StableDiffusionXLBase):
    """A text and control pictures to a picture."""

    family = StableDiffusionXLWithControlNet
    task = FromNoise(like="control_image")
    controls = (ControlNetUnion(),)
    __init__ = constructor(StableDiffusionXLWithControlNet, _PARTS + _OPTIONS, required="controlnet")
    __call__ = call(
        "prompt prompt_2 control_image height width num_inference_steps timesteps sigmas denoising_end guidance_scale "
        + _TEXT + _POOLED + _ADAPTER + _CONTROL + _SIZES + _NEGATIVE_SIZES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        guidance_scale=5.0,
    )  # fmt: skip


class StableDiffusionXLControlNetUnionFromImageBase(StableDiffusionXLBase):
    """What the pipelines that start from a picture share; abstract."""

    family = StableDiffusionXLFromImageWithControlNet
    controls = (ControlNetUnion(),)
    __init__ = constructor(
        StableDiffusionXLFromImageWithControlNet,
        _PARTS + "requires_aesthetics_score " + _OPTIONS,
        required="controlnet",
    )


class StableDiffusionXLControlNetUnionImg2ImgPipeline(StableDiffusionXLControlNetUnionFromImageBase):
    """A text, a picture and control pictures to a picture."""

    task = FromImage()
    __call__ = call(
        "prompt prompt_2 image control_image height width strength num_inference_steps guidance_scale "
        + _TEXT + _POOLED + _ADAPTER + _CONTROL + _SIZES + _NEGATIVE_SIZES + _SCORES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        earlier_callback=True,
        guidance_scale=5.0,
        controlnet_conditioning_scale=0.8,
    )  # fmt: skip


class StableDiffusionXLControlNetUnionInpaintPipeline(StableDiffusionXLControlNetUnionFromImageBase):
    """New content where a mask is white, steered by control pictures."""

    task = Inpaint(at_its_size=True)
    __call__ = call(
        "prompt prompt_2 image mask_image control_image height width padding_mask_crop strength num_inference_steps "
        "denoising_start denoising_end guidance_scale "
        + _TEXT + _ADAPTER + _POOLED + _CONTROL + "guidance_rescale " + _SIZES + _SCORES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        earlier_callback=True,
        guidance_scale=5.0,
        strength=0.9999,
    )  # fmt: skip
