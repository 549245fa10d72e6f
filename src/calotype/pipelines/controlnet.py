"""Pipelines with ControlNets (arXiv:2302.05543), for Stable Diffusion and Stable Diffusion XL."""

from __future__ import annotations

from calotype.diffusion.controls.controlnet import ControlNet
from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.inpaint import Inpaint
from calotype.families.stable_diffusion import StableDiffusionWithControlNet
from calotype.families.stable_diffusion_xl import (
    StableDiffusionXLFromImageWithControlNet,
    StableDiffusionXLWithControlNet,
)
from calotype.pipelines.outputs import StableDiffusionPipelineOutput, StableDiffusionXLPipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase
from calotype.pipelines.stable_diffusion_xl import StableDiffusionXLBase

_PARTS = (
    "vae text_encoder tokenizer unet controlnet scheduler safety_checker feature_extractor image_encoder "
)
_PARTS += "requires_safety_checker"
_XL_PARTS = "vae text_encoder text_encoder_2 tokenizer tokenizer_2 unet controlnet scheduler "
_XL_LAST = "force_zeros_for_empty_prompt add_watermarker feature_extractor image_encoder"

_TEXT = "negative_prompt num_images_per_prompt eta generator latents prompt_embeds negative_prompt_embeds "
_ADAPTER = "ip_adapter_image ip_adapter_image_embeds "
_POOLED = "pooled_prompt_embeds negative_pooled_prompt_embeds "
_XL_TEXT = "negative_prompt negative_prompt_2 num_images_per_prompt eta generator latents prompt_embeds "
_XL_TEXT += "negative_prompt_embeds "
_OUTPUT = "output_type return_dict cross_attention_kwargs "
_CONTROL = "controlnet_conditioning_scale guess_mode control_guidance_start control_guidance_end "
_SIZES = "original_size crops_coords_top_left target_size "
_NEGATIVE_SIZES = "negative_original_size negative_crops_coords_top_left negative_target_size "
_SCORES = "aesthetic_score negative_aesthetic_score "
_LAST = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"


class StableDiffusionControlNetBase(StableDiffusionBase):
    """What the pipelines of Stable Diffusion with ControlNets share; abstract."""

    family = StableDiffusionWithControlNet
    controls = (ControlNet(),)
    __init__ = constructor(StableDiffusionWithControlNet, _PARTS, required="controlnet")


class StableDiffusionControlNetPipeline(StableDiffusionControlNetBase):
    """A text and a control picture, called ``image`` here, to a picture."""

    task = FromNoise(like="image")
    controls = (ControlNet("image"),)
    __call__ = call(
        "prompt image height width num_inference_steps timesteps sigmas guidance_scale "
        + _TEXT + _ADAPTER + _OUTPUT + _CONTROL + _LAST,
        output=StableDiffusionPipelineOutput,
        earlier_callback=True,
    )  # fmt: skip


class StableDiffusionControlNetImg2ImgPipeline(StableDiffusionControlNetBase):
    """A text, a picture and a control picture to a picture."""

    task = FromImage()
    __call__ = call(
        "prompt image control_image height width strength num_inference_steps guidance_scale "
        + _TEXT + _ADAPTER + _OUTPUT + _CONTROL + _LAST,
        output=StableDiffusionPipelineOutput,
        earlier_callback=True,
        controlnet_conditioning_scale=0.8,
    )  # fmt: skip


class StableDiffusionControlNetInpaintPipeline(StableDiffusionControlNetBase):
    """New content where a mask is white, steered by a control picture."""

    task = Inpaint(at_its_size=True)
    __call__ = call(
        "prompt image mask_image control_image height width padding_mask_crop strength num_inference_steps "
        "guidance_scale " + _TEXT + _ADAPTER + _OUTPUT + _CONTROL + _LAST,
        output=StableDiffusionPipelineOutput,
        earlier_callback=True,
        strength=1.0,
        controlnet_conditioning_scale=0.5,
    )


class StableDiffusionXLControlNetPipeline(StableDiffusionXLBase):
    """A text and a control picture, called ``image`` here, to a picture."""

    family = StableDiffusionXLWithControlNet
    task = FromNoise(like="image")
    controls = (ControlNet("image"),)
    __init__ = constructor(StableDiffusionXLWithControlNet, _XL_PARTS + _XL_LAST, required="controlnet")
    __call__ = call(
        "prompt prompt_2 image height width num_inference_steps timesteps sigmas denoising_end guidance_scale "
        + _XL_TEXT + _POOLED + _ADAPTER + _OUTPUT + _CONTROL + _SIZES + _NEGATIVE_SIZES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        earlier_callback=True,
        guidance_scale=5.0,
    )  # fmt: skip


class StableDiffusionXLControlNetFromImageBase(StableDiffusionXLBase):
    """What the pipelines that start from a picture share; abstract."""

    family = StableDiffusionXLFromImageWithControlNet
    controls = (ControlNet(),)
    __init__ = constructor(
        StableDiffusionXLFromImageWithControlNet,
        _XL_PARTS + "requires_aesthetics_score " + _XL_LAST,
        required="controlnet",
    )


class StableDiffusionXLControlNetImg2ImgPipeline(StableDiffusionXLControlNetFromImageBase):
    """A text, a picture and a control picture to a picture."""

    task = FromImage()
    __call__ = call(
        "prompt prompt_2 image control_image height width strength num_inference_steps guidance_scale "
        + _XL_TEXT + _POOLED + _ADAPTER + _OUTPUT + _CONTROL + _SIZES + _NEGATIVE_SIZES + _SCORES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        earlier_callback=True,
        guidance_scale=5.0,
        controlnet_conditioning_scale=0.8,
    )  # fmt: skip


class StableDiffusionXLControlNetInpaintPipeline(StableDiffusionXLControlNetFromImageBase):
    """New content where a mask is white, steered by a control picture."""

    task = Inpaint(at_its_size=True)
    __call__ = call(
        "prompt prompt_2 image mask_image control_image height width padding_mask_crop strength num_inference_steps "
        "denoising_start denoising_end guidance_scale "
        + _XL_TEXT + _ADAPTER + _POOLED + _OUTPUT + _CONTROL + "guidance_rescale " + _SIZES + _SCORES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        earlier_callback=True,
        guidance_scale=5.0,
        strength=0.9999,
    )  # fmt: skip
