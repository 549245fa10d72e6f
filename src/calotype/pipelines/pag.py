"""Pipelines with perturbed-attention guidance (arXiv:2403.17377): better structure, with or without a prompt."""

from __future__ import annotations

from typing import Any

from calotype.core.errors import InputError
from calotype.diffusion.controls.controlnet import ControlNet
from calotype.diffusion.guidance import layer_names
from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.inpaint import Inpaint
from calotype.families.perturbed import (
    StableDiffusionPAG,
    StableDiffusionWithControlNetPAG,
    StableDiffusionXLFromImagePAG,
    StableDiffusionXLFromImageWithControlNetPAG,
    StableDiffusionXLPAG,
    StableDiffusionXLWithControlNetPAG,
)
from calotype.pipelines.outputs import StableDiffusionPipelineOutput, StableDiffusionXLPipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase
from calotype.pipelines.stable_diffusion_xl import StableDiffusionXLBase

_PARTS = (
    "vae text_encoder tokenizer unet controlnet scheduler safety_checker feature_extractor image_encoder "
)
_PARTS += "requires_safety_checker pag_applied_layers"
_XL_PARTS = "vae text_encoder text_encoder_2 tokenizer tokenizer_2 unet controlnet scheduler "
_XL_LAST = "force_zeros_for_empty_prompt add_watermarker feature_extractor image_encoder pag_applied_layers"

_STEPS = "num_inference_steps timesteps sigmas "
_TEXT = "negative_prompt num_images_per_prompt eta generator latents prompt_embeds negative_prompt_embeds "
_FROM_IMAGE_TEXT = "negative_prompt num_images_per_prompt eta generator prompt_embeds negative_prompt_embeds "
_XL_TEXT = "negative_prompt negative_prompt_2 num_images_per_prompt eta generator latents prompt_embeds "
_XL_TEXT += "negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds "
_OUTPUT = "ip_adapter_image ip_adapter_image_embeds output_type return_dict cross_attention_kwargs "
_RANGE = "control_guidance_start control_guidance_end "
_SIZES = (
    "original_size crops_coords_top_left target_size negative_original_size negative_crops_coords_top_left "
)
_SIZES += "negative_target_size "
_SCORES = "aesthetic_score negative_aesthetic_score "
_LAST = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs pag_scale pag_adaptive_scale"


class PerturbedAttentionBase(DiffusionPipeline):
    """What pipelines with perturbed-attention guidance have beside the others; abstract."""

    pag_applied_layers: list[str]

    def set_pag_applied_layers(
        self, pag_applied_layers: str | list[str], pag_attn_processors: Any = None
    ) -> None:
        """Perturb other self-attention layers of the denoiser from now on.

        ``pag_applied_layers`` are parts of their names or regular expressions, such as "mid" or
        ["down_blocks.1", "up_blocks.0.attentions.0"]. Raises ``InputError`` for what is no name, and for processors:
        perturbed layers see by identity, without one.
        """
        if pag_attn_processors is not None:
            raise InputError(
                "set_pag_applied_layers takes no pag_attn_processors: perturbed layers see by identity, whatever "
                "processor computes their attention."
            )
        self.pag_applied_layers = list(layer_names(pag_applied_layers))


class StableDiffusionPAGBase(PerturbedAttentionBase, StableDiffusionBase):
    """What the pipelines of Stable Diffusion share; abstract."""

    family = StableDiffusionPAG
    __init__ = constructor(StableDiffusionPAG)


class StableDiffusionPAGPipeline(StableDiffusionPAGBase):
    """Text to image with Stable Diffusion 1.x and 2.x."""

    task = FromNoise()
    __call__ = call(
        "prompt height width " + _STEPS + "guidance_scale " + _TEXT + _OUTPUT + "guidance_rescale " + _LAST,
        output=StableDiffusionPipelineOutput,
    )


class StableDiffusionPAGImg2ImgPipeline(StableDiffusionPAGBase):
    """A picture and a text to a picture."""

    task = FromImage()
    __call__ = call(
        "prompt image strength " + _STEPS + "guidance_scale " + _FROM_IMAGE_TEXT + _OUTPUT + _LAST,
        output=StableDiffusionPipelineOutput,
    )


class StableDiffusionPAGInpaintPipeline(StableDiffusionPAGBase):
    """New content where a mask is white."""

    task = Inpaint()
    __call__ = call(
        "prompt image mask_image masked_image_latents height width padding_mask_crop strength "
        + _STEPS + "guidance_scale " + _TEXT + _OUTPUT + "guidance_rescale " + _LAST,
        output=StableDiffusionPipelineOutput,
        strength=0.9999,
    )  # fmt: skip


class StableDiffusionControlNetPAGBase(PerturbedAttentionBase, StableDiffusionBase):
    """What the pipelines of Stable Diffusion with ControlNets share; abstract."""

    family = StableDiffusionWithControlNetPAG
    controls = (ControlNet(),)
    __init__ = constructor(StableDiffusionWithControlNetPAG, _PARTS, required="controlnet")


class StableDiffusionControlNetPAGPipeline(StableDiffusionControlNetPAGBase):
    """A text and a control picture, called ``image`` here, to a picture."""

    task = FromNoise(like="image")
    controls = (ControlNet("image"),)
    __call__ = call(
        "prompt image height width " + _STEPS + "guidance_scale "
        + _TEXT + _OUTPUT + "controlnet_conditioning_scale guess_mode " + _RANGE + _LAST,
        output=StableDiffusionPipelineOutput,
    )  # fmt: skip


class StableDiffusionControlNetPAGInpaintPipeline(StableDiffusionControlNetPAGBase):
    """New content where a mask is white, steered by a control picture."""

    task = Inpaint(at_its_size=True)
    __call__ = call(
        "prompt image mask_image control_image height width padding_mask_crop strength num_inference_steps "
        "guidance_scale " + _TEXT + _OUTPUT + "controlnet_conditioning_scale " + _RANGE + _LAST,
        output=StableDiffusionPipelineOutput,
        strength=1.0,
        controlnet_conditioning_scale=0.5,
    )


class StableDiffusionXLPAGPipeline(PerturbedAttentionBase, StableDiffusionXLBase):
    """Text to image with Stable Diffusion XL."""

    family = StableDiffusionXLPAG
    task = FromNoise()
    __init__ = constructor(StableDiffusionXLPAG, without="requires_aesthetics_score")
    __call__ = call(
        "prompt prompt_2 height width " + _STEPS + "denoising_end guidance_scale "
        + _XL_TEXT + _OUTPUT + "guidance_rescale " + _SIZES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        guidance_scale=5.0,
    )  # fmt: skip


class StableDiffusionXLPAGFromImageBase(PerturbedAttentionBase, StableDiffusionXLBase):
    """What the pipelines of Stable Diffusion XL that start from a picture share; abstract."""

    family = StableDiffusionXLFromImagePAG
    __init__ = constructor(StableDiffusionXLFromImagePAG)


class StableDiffusionXLPAGImg2ImgPipeline(StableDiffusionXLPAGFromImageBase):
    """A picture and a text to a picture, and the refiner."""

    task = FromImage()
    __call__ = call(
        "prompt prompt_2 image strength " + _STEPS + "denoising_start denoising_end guidance_scale "
        + _XL_TEXT + _OUTPUT + "guidance_rescale " + _SIZES + _SCORES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        guidance_scale=5.0,
        strength=0.3,
    )  # fmt: skip


class StableDiffusionXLPAGInpaintPipeline(StableDiffusionXLPAGFromImageBase):
    """New content where a mask is white."""

    task = Inpaint()
    __call__ = call(
        "prompt prompt_2 image mask_image masked_image_latents height width padding_mask_crop strength "
        + _STEPS + "denoising_start denoising_end guidance_scale "
        + _XL_TEXT + _OUTPUT + "guidance_rescale " + _SIZES + _SCORES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        strength=0.9999,
    )  # fmt: skip


class StableDiffusionXLControlNetPAGPipeline(PerturbedAttentionBase, StableDiffusionXLBase):
    """A text and a control picture, called ``image`` here, to a picture."""

    family = StableDiffusionXLWithControlNetPAG
    task = FromNoise(like="image")
    controls = (ControlNet("image"),)
    __init__ = constructor(StableDiffusionXLWithControlNetPAG, _XL_PARTS + _XL_LAST, required="controlnet")
    __call__ = call(
        "prompt prompt_2 image height width " + _STEPS + "denoising_end guidance_scale "
        + _XL_TEXT + _OUTPUT + "controlnet_conditioning_scale " + _RANGE + _SIZES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        guidance_scale=5.0,
    )  # fmt: skip


class StableDiffusionXLControlNetPAGImg2ImgPipeline(PerturbedAttentionBase, StableDiffusionXLBase):
    """A text, a picture and a control picture to a picture."""

    family = StableDiffusionXLFromImageWithControlNetPAG
    task = FromImage()
    controls = (ControlNet(),)
    __init__ = constructor(
        StableDiffusionXLFromImageWithControlNetPAG,
        _XL_PARTS + "requires_aesthetics_score " + _XL_LAST,
        required="controlnet",
    )
    __call__ = call(
        "prompt prompt_2 image control_image height width strength num_inference_steps guidance_scale "
        + _XL_TEXT + _OUTPUT + "controlnet_conditioning_scale guess_mode " + _RANGE + _SIZES + _SCORES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        guidance_scale=5.0,
        controlnet_conditioning_scale=0.8,
    )  # fmt: skip
