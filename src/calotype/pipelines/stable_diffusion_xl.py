"""Stable Diffusion XL pipelines."""

from __future__ import annotations

from typing import Any

import torch

from calotype.adapters.strength import at_strength
from calotype.diffusion.inputs import TwoPrompts
from calotype.diffusion.tasks.edit import Edit
from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.inpaint import Inpaint
from calotype.families.stable_diffusion_xl import (
    StableDiffusionXL,
    StableDiffusionXLEditing,
    StableDiffusionXLFromImage,
)
from calotype.pipelines.adapters import SavesLoraOfTwo
from calotype.pipelines.ip_adapter import ImagePrompted
from calotype.pipelines.outputs import StableDiffusionXLPipelineOutput
from calotype.pipelines.pictures import PicturePipeline
from calotype.pipelines.signature import call, constructor

_TEXT = "negative_prompt negative_prompt_2 num_images_per_prompt eta generator latents prompt_embeds "
_TEXT += "negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds ip_adapter_image "
_TEXT += "ip_adapter_image_embeds output_type return_dict cross_attention_kwargs guidance_rescale "
_SIZES = (
    "original_size crops_coords_top_left target_size negative_original_size negative_crops_coords_top_left "
)
_SIZES += "negative_target_size "
_LAST = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"


class StableDiffusionXLBase(ImagePrompted, SavesLoraOfTwo, PicturePipeline):
    """What the pipelines of Stable Diffusion XL share; abstract."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->unet->vae"
    _optional_components = (
        "tokenizer",
        "tokenizer_2",
        "text_encoder",
        "text_encoder_2",
        "image_encoder",
        "feature_extractor",
    )

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Prompt, negative prompt and the pooled form of each, as embeddings for use in a call.

        ``lora_scale`` is how strongly LoRA weights of the text encoders act.
        """
        subject = TwoPrompts(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            clip_skip=clip_skip,
            prompt_2=prompt_2,
            negative_prompt_2=negative_prompt_2,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
        )
        family: Any = self.bound_family()
        place = torch.device(device or self._execution_device)
        with at_strength(lora_scale):
            return tuple(family.embed(subject, do_classifier_free_guidance, place))


class StableDiffusionXLPipeline(StableDiffusionXLBase):
    """Text to image with Stable Diffusion XL, SDXL Turbo and Playground (arXiv:2307.01952)."""

    family = StableDiffusionXL
    task = FromNoise()
    __init__ = constructor(StableDiffusionXL, without="requires_aesthetics_score")
    __call__ = call(
        "prompt prompt_2 height width num_inference_steps timesteps sigmas denoising_end guidance_scale "
        + _TEXT + _SIZES + _LAST,
        output=StableDiffusionXLPipelineOutput,
        earlier_callback=True,
        guidance_scale=5.0,
    )  # fmt: skip


class StableDiffusionXLImg2ImgPipeline(StableDiffusionXLBase):
    """A picture and a text to a picture, and the refiner."""

    family = StableDiffusionXLFromImage
    task = FromImage()
    __init__ = constructor(StableDiffusionXLFromImage)
    __call__ = call(
        "prompt prompt_2 image strength num_inference_steps timesteps sigmas denoising_start denoising_end "
        "guidance_scale " + _TEXT + _SIZES + "aesthetic_score negative_aesthetic_score " + _LAST,
        output=StableDiffusionXLPipelineOutput,
        earlier_callback=True,
        guidance_scale=5.0,
        strength=0.3,
    )


class StableDiffusionXLInpaintPipeline(StableDiffusionXLBase):
    """New content where a mask is white, with checkpoints made for it (9 channels) and with any other."""

    family = StableDiffusionXLFromImage
    task = Inpaint()
    __init__ = constructor(StableDiffusionXLFromImage)
    __call__ = call(
        "prompt prompt_2 image mask_image masked_image_latents height width padding_mask_crop strength "
        "num_inference_steps timesteps sigmas denoising_start denoising_end guidance_scale "
        + _TEXT + _SIZES + "aesthetic_score negative_aesthetic_score " + _LAST,
        output=StableDiffusionXLPipelineOutput,
        earlier_callback=True,
        strength=0.9999,
    )  # fmt: skip


class StableDiffusionXLInstructPix2PixPipeline(StableDiffusionXLBase):
    """A picture and an instruction to an edited picture (arXiv:2211.09800), CosXL's editing among them."""

    family = StableDiffusionXLEditing
    task = Edit(at_its_size=False)
    __init__ = constructor(
        StableDiffusionXLEditing,
        "vae text_encoder text_encoder_2 tokenizer tokenizer_2 unet scheduler force_zeros_for_empty_prompt "
        "add_watermarker is_cosxl_edit",
    )
    __call__ = call(
        "prompt prompt_2 image height width num_inference_steps denoising_end guidance_scale "
        "image_guidance_scale negative_prompt negative_prompt_2 num_images_per_prompt eta generator latents "
        "prompt_embeds negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds output_type "
        "return_dict callback callback_steps cross_attention_kwargs guidance_rescale original_size "
        "crops_coords_top_left target_size",
        output=StableDiffusionXLPipelineOutput,
        num_inference_steps=100,
        guidance_scale=5.0,
    )
