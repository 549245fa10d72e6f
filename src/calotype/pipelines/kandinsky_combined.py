"""Kandinsky 2.1 and 2.2 with prior and decoder in one pipeline: a text to a picture in one call."""

from __future__ import annotations

from inspect import Parameter
from typing import Any

from calotype.diffusion.inputs import EARLIER_CALLBACK
from calotype.diffusion.parts import Stage
from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.inpaint_latents import InpaintLatents
from calotype.families.kandinsky_2_1 import noised_by_strength
from calotype.families.kandinsky_combined import (
    CombinedKandinsky21,
    CombinedKandinsky22,
    ImaginedKandinsky21,
    ImaginedKandinsky22,
)
from calotype.families.kandinsky_prior import KandinskyPrior
from calotype.pipelines.adapters import Adapters
from calotype.pipelines.outputs import ImagePipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor

_PRIOR = (
    Stage(
        "prior",
        KandinskyPrior,
        FromNoise(),
        gives="image_embeds",
        alone=("latents",),
        ignores=(*EARLIER_CALLBACK, "callback_on_step_end", "callback_on_step_end_tensor_inputs"),
    ),
)
_NEEDED: dict[str, Any] = dict.fromkeys(("prompt", "image", "mask_image"), Parameter.empty)
_USUAL: dict[str, Any] = {
    **_NEEDED,
    "height": 512,
    "width": 512,
    "num_inference_steps": 100,
    "guidance_scale": 4.0,
    "prior_guidance_scale": 4.0,
    "prior_num_inference_steps": 25,
}
_TEXT = "negative_prompt num_inference_steps guidance_scale num_images_per_prompt "
_REST = "height width prior_guidance_scale prior_num_inference_steps generator latents output_type "
_EARLIER = "callback callback_steps "
_CALLBACKS = (
    "prior_callback_on_step_end prior_callback_on_step_end_tensor_inputs callback_on_step_end "
    "callback_on_step_end_tensor_inputs"
)


class KandinskyV22CombinedBase(Adapters, DiffusionPipeline):
    """What the pipelines of Kandinsky 2.2 with its prior share; abstract."""

    family = ImaginedKandinsky22
    stages = _PRIOR
    connected = "prior"
    model_cpu_offload_seq = "prior_text_encoder->prior_image_encoder->unet->movq"
    _exclude_from_cpu_offload = ("prior_prior",)
    _lora_loadable_modules = ("unet", "text_encoder", "prior_prior")
    __init__ = constructor(CombinedKandinsky22)


class KandinskyV22CombinedPipeline(KandinskyV22CombinedBase):
    """Text to image with Kandinsky 2.2."""

    task = FromNoise()
    __call__ = call(
        "prompt " + _TEXT + _REST + _EARLIER + "return_dict " + _CALLBACKS,
        output=ImagePipelineOutput,
        **_USUAL,
    )


class KandinskyV22Img2ImgCombinedPipeline(KandinskyV22CombinedBase):
    """A picture and a text to a picture with Kandinsky 2.2."""

    task = FromImage(copies_together=True)
    __call__ = call(
        "prompt image negative_prompt num_inference_steps guidance_scale strength num_images_per_prompt "
        + _REST + _EARLIER + "return_dict " + _CALLBACKS,
        output=ImagePipelineOutput,
        strength=0.3,
        **_USUAL,
    )  # fmt: skip


class KandinskyV22InpaintCombinedPipeline(KandinskyV22CombinedBase):
    """New content where a mask is white with Kandinsky 2.2, with checkpoints made for it."""

    task = InpaintLatents()
    __call__ = call(
        "prompt image mask_image " + _TEXT + _REST + "return_dict " + _CALLBACKS,
        output=ImagePipelineOutput,
        earlier_callback=True,
        **_USUAL,
    )


class KandinskyCombinedBase(Adapters, DiffusionPipeline):
    """What the pipelines of Kandinsky 2.1 with its prior share; abstract."""

    family = ImaginedKandinsky21
    stages = _PRIOR
    connected = "prior"
    model_cpu_offload_seq = "prior_text_encoder->prior_image_encoder->prior_prior->text_encoder->unet->movq"
    _exclude_from_cpu_offload = ("prior_prior",)
    _lora_loadable_modules = ("unet", "text_encoder", "prior_prior")
    __init__ = constructor(CombinedKandinsky21)


class KandinskyCombinedPipeline(KandinskyCombinedBase):
    """Text to image with Kandinsky 2.1."""

    task = FromNoise()
    model_cpu_offload_seq = "text_encoder->unet->movq->prior_prior->prior_image_encoder->prior_text_encoder"
    __call__ = call(
        "prompt " + _TEXT + _REST + _EARLIER + "return_dict",
        output=ImagePipelineOutput,
        **_USUAL,
    )


class KandinskyImg2ImgCombinedPipeline(KandinskyCombinedBase):
    """A picture and a text to a picture with Kandinsky 2.1."""

    task = FromImage(copies_together=True, noised=noised_by_strength)
    __call__ = call(
        "prompt image " + _TEXT + "strength " + _REST + _EARLIER + "return_dict",
        output=ImagePipelineOutput,
        strength=0.3,
        **_USUAL,
    )


class KandinskyInpaintCombinedPipeline(KandinskyCombinedBase):
    """New content where a mask is white with Kandinsky 2.1, with checkpoints made for it."""

    task = InpaintLatents(reimposed=False)
    __call__ = call(
        "prompt image mask_image " + _TEXT + _REST + _EARLIER + "return_dict",
        output=ImagePipelineOutput,
        **_USUAL,
    )
