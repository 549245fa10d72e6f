"""Kandinsky 2.1: from a text and the embeddings of a prior to pictures."""

from __future__ import annotations

from inspect import Parameter
from typing import Any

from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.inpaint_latents import InpaintLatents
from calotype.families.kandinsky_2_1 import Kandinsky21, noised_by_strength
from calotype.pipelines.adapters import Adapters
from calotype.pipelines.outputs import ImagePipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor

_NEEDED: dict[str, Any] = dict.fromkeys(
    ("prompt", "image", "mask_image", "image_embeds", "negative_image_embeds"), Parameter.empty
)
_USUAL: dict[str, Any] = {"height": 512, "width": 512, "num_inference_steps": 100, "guidance_scale": 4.0}
_LAST = "output_type callback callback_steps return_dict"
_PICTURE_PARTS = "text_encoder movq tokenizer unet scheduler"


class KandinskyBase(Adapters, DiffusionPipeline):
    """What the pipelines of Kandinsky 2.1 share; abstract."""

    family = Kandinsky21
    model_cpu_offload_seq = "text_encoder->unet->movq"


class KandinskyPipeline(KandinskyBase):
    """Pictures of a text with the embeddings that a prior made of it."""

    task = FromNoise()
    __init__ = constructor(Kandinsky21)
    __call__ = call(
        "prompt image_embeds negative_image_embeds negative_prompt height width num_inference_steps guidance_scale "
        "num_images_per_prompt generator latents " + _LAST,
        output=ImagePipelineOutput,
        **_NEEDED,
        **_USUAL,
    )


class KandinskyImg2ImgPipeline(KandinskyBase):
    """A picture moved toward a text and the embeddings that a prior made of it."""

    task = FromImage(copies_together=True, noised=noised_by_strength)
    __init__ = constructor(Kandinsky21, _PICTURE_PARTS)
    __call__ = call(
        "prompt image image_embeds negative_image_embeds negative_prompt height width num_inference_steps strength "
        "guidance_scale num_images_per_prompt generator " + _LAST,
        output=ImagePipelineOutput,
        strength=0.3,
        **_NEEDED,
        **{**_USUAL, "guidance_scale": 7.0},
    )


class KandinskyInpaintPipeline(KandinskyBase):
    """New content where a mask is white, with checkpoints made for it."""

    task = InpaintLatents(reimposed=False)
    __init__ = constructor(Kandinsky21, _PICTURE_PARTS)
    __call__ = call(
        "prompt image mask_image image_embeds negative_image_embeds negative_prompt height width num_inference_steps "
        "guidance_scale num_images_per_prompt generator latents " + _LAST,
        output=ImagePipelineOutput,
        **_NEEDED,
        **_USUAL,
    )
