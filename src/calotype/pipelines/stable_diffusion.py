"""Stable Diffusion pipelines."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from calotype.adapters.strength import at_strength
from calotype.diffusion.inputs import Prompt
from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.inpaint import Inpaint
from calotype.families.stable_diffusion import StableDiffusion, StableDiffusionFamily
from calotype.pipelines.adapters import SavesLora
from calotype.pipelines.ip_adapter import ImagePrompted
from calotype.pipelines.outputs import StableDiffusionPipelineOutput
from calotype.pipelines.pictures import PicturePipeline
from calotype.pipelines.signature import call, constructor


class StableDiffusionBase(ImagePrompted, SavesLora, PicturePipeline):
    """What the pipelines of Stable Diffusion 1.x and 2.x share; abstract."""

    family: ClassVar[type[StableDiffusionFamily]] = StableDiffusion
    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor", "image_encoder")
    _exclude_from_cpu_offload: ClassVar[tuple[str, ...]] = ("safety_checker",)

    __init__ = constructor(StableDiffusion)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str | None,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prompt and negative prompt as embeddings (pictures, tokens, channels), for use as ``prompt_embeds``.

        ``lora_scale`` is how strongly LoRA weights of the text encoder act.
        """
        subject = Prompt(
            prompt, negative_prompt, num_images_per_prompt, prompt_embeds, negative_prompt_embeds, clip_skip
        )
        family: Any = self.bound_family()
        place = torch.device(device or self._execution_device)
        with at_strength(lora_scale):
            return family.embed(subject, do_classifier_free_guidance, place)


class StableDiffusionPipeline(StableDiffusionBase):
    """Text to image with Stable Diffusion 1.x and 2.x (arXiv:2112.10752)."""

    task = FromNoise()
    __call__ = call(
        "prompt height width num_inference_steps timesteps sigmas guidance_scale negative_prompt num_images_per_prompt "
        "eta generator latents prompt_embeds negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds "
        "output_type return_dict cross_attention_kwargs guidance_rescale clip_skip callback_on_step_end "
        "callback_on_step_end_tensor_inputs",
        output=StableDiffusionPipelineOutput,
        earlier_callback=True,
    )


class StableDiffusionImg2ImgPipeline(StableDiffusionBase):
    """A picture and a text to a picture (SDEdit, arXiv:2108.01073)."""

    task = FromImage()
    __call__ = call(
        "prompt image strength num_inference_steps timesteps sigmas guidance_scale negative_prompt "
        "num_images_per_prompt eta generator prompt_embeds negative_prompt_embeds ip_adapter_image "
        "ip_adapter_image_embeds output_type return_dict cross_attention_kwargs clip_skip callback_on_step_end "
        "callback_on_step_end_tensor_inputs",
        output=StableDiffusionPipelineOutput,
        earlier_callback=True,
    )


class StableDiffusionInpaintPipeline(StableDiffusionBase):
    """New content where a mask is white, with checkpoints made for it (9 channels) and with any other."""

    task = Inpaint()
    __call__ = call(
        "prompt image mask_image masked_image_latents height width padding_mask_crop strength num_inference_steps "
        "timesteps sigmas guidance_scale negative_prompt num_images_per_prompt eta generator latents prompt_embeds "
        "negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds output_type return_dict "
        "cross_attention_kwargs clip_skip callback_on_step_end callback_on_step_end_tensor_inputs",
        output=StableDiffusionPipelineOutput,
        earlier_callback=True,
        strength=1.0,
    )
