"""Kandinsky 2.0: texts in many languages to pictures, without a prior."""

from __future__ import annotations

from typing import Any

from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.inpaint_latents import InpaintLatents
from calotype.families.kandinsky_2_0 import KandinskyV20
from calotype.pipelines.outputs import ImagePipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor

_USUAL: dict[str, Any] = {"num_inference_steps": 100, "guidance_scale": 7.0}
_LAST = (
    "num_inference_steps guidance_scale negative_prompt num_images_per_prompt eta generator latents output_type "
    "return_dict callback_on_step_end callback_on_step_end_tensor_inputs"
)


class KandinskyV20Base(DiffusionPipeline):
    """What the pipelines of Kandinsky 2.0 share; abstract."""

    family = KandinskyV20
    model_cpu_offload_seq = (
        "text_encoder->text_encoder_2->inpaint_text_proj->text_proj->inpaint_unet->unet->vae"
    )
    _optional_components = ("inpaint_text_proj", "inpaint_unet")
    __init__ = constructor(KandinskyV20)


class KandinskyV20Pipeline(KandinskyV20Base):
    """Text to image."""

    task = FromNoise()
    __call__ = call("prompt height width " + _LAST, output=ImagePipelineOutput, **_USUAL)


class KandinskyV20Img2ImgPipeline(KandinskyV20Base):
    """A picture and a text to a picture.

    ``strength`` is how much is forgotten, as everywhere here; what was published counts what is kept, 1 minus it.
    """

    task = FromImage(copies_together=True)
    __call__ = call("prompt image strength " + _LAST, output=ImagePipelineOutput, strength=0.3, **_USUAL)


class KandinskyV20InpaintPipeline(KandinskyV20Base):
    """New content where a mask is white, with the checkpoint made for it.

    The network reads the picture's latents around the mask; as published, they are not put back after its steps, so
    ``composite=True`` is what keeps every pixel there.
    """

    prefix = "inpaint"
    task = InpaintLatents(reimposed=False)
    __call__ = call("prompt image mask_image height width " + _LAST, output=ImagePipelineOutput, **_USUAL)
