"""Kandinsky 2.2: from the embeddings of a prior to pictures."""

from __future__ import annotations

from inspect import Parameter
from typing import Any

from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.inpaint_latents import InpaintLatents
from calotype.families.kandinsky_2_2 import Kandinsky22
from calotype.pipelines.adapters import Adapters
from calotype.pipelines.outputs import ImagePipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor

_NEEDED: dict[str, Any] = {"image_embeds": Parameter.empty, "negative_image_embeds": Parameter.empty}
_PICTURE: dict[str, Any] = {**_NEEDED, "image": Parameter.empty}
_USUAL: dict[str, Any] = {"height": 512, "width": 512, "num_inference_steps": 100, "guidance_scale": 4.0}
_LAST = "output_type return_dict callback_on_step_end callback_on_step_end_tensor_inputs"
_EARLIER_LAST = "output_type callback callback_steps return_dict"


class KandinskyV22Base(Adapters, DiffusionPipeline):
    """What the pipelines of Kandinsky 2.2 share; abstract."""

    family = Kandinsky22
    model_cpu_offload_seq = "unet->movq"
    __init__ = constructor(Kandinsky22)


class KandinskyV22Pipeline(KandinskyV22Base):
    """Pictures with the embeddings that a prior made of a text."""

    task = FromNoise()
    __call__ = call(
        "image_embeds negative_image_embeds height width num_inference_steps guidance_scale num_images_per_prompt "
        "generator latents " + _LAST,
        output=ImagePipelineOutput,
        earlier_callback=True,
        **_NEEDED,
        **_USUAL,
    )


class KandinskyV22Img2ImgPipeline(KandinskyV22Base):
    """A picture moved toward the embeddings that a prior made of a text."""

    task = FromImage(copies_together=True)
    __call__ = call(
        "image_embeds image negative_image_embeds height width num_inference_steps guidance_scale strength "
        "num_images_per_prompt generator " + _LAST,
        output=ImagePipelineOutput,
        earlier_callback=True,
        strength=0.3,
        **_PICTURE,
        **_USUAL,
    )


class KandinskyV22InpaintPipeline(KandinskyV22Base):
    """New content where a mask is white, with checkpoints made for it."""

    task = InpaintLatents()
    __call__ = call(
        "image_embeds image mask_image negative_image_embeds height width num_inference_steps guidance_scale "
        "num_images_per_prompt generator latents " + _LAST,
        output=ImagePipelineOutput,
        earlier_callback=True,
        mask_image=Parameter.empty,
        **_PICTURE,
        **_USUAL,
    )


class KandinskyV22ControlnetPipeline(KandinskyV22Base):
    """Pictures steered by a hint, such as depth, with checkpoints made for it."""

    task = FromNoise()
    __call__ = call(
        "image_embeds negative_image_embeds hint height width num_inference_steps guidance_scale num_images_per_prompt "
        "generator latents " + _EARLIER_LAST,
        output=ImagePipelineOutput,
        hint=Parameter.empty,
        **_NEEDED,
        **_USUAL,
    )


class KandinskyV22ControlnetImg2ImgPipeline(KandinskyV22Base):
    """A picture moved toward embeddings and steered by a hint, such as depth."""

    task = FromImage(copies_together=True)
    __call__ = call(
        "image_embeds image negative_image_embeds hint height width num_inference_steps guidance_scale strength "
        "num_images_per_prompt generator " + _EARLIER_LAST,
        output=ImagePipelineOutput,
        hint=Parameter.empty,
        strength=0.3,
        **_PICTURE,
        **_USUAL,
    )
