"""Pipelines of latent consistency models."""

from __future__ import annotations

from calotype.diffusion.tasks.few_steps import FewSteps
from calotype.diffusion.tasks.from_image import FromImage
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.families.stable_diffusion_variants import LatentConsistency
from calotype.pipelines.outputs import StableDiffusionPipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase

_REST = (
    "num_images_per_prompt generator latents prompt_embeds ip_adapter_image ip_adapter_image_embeds output_type "
    "return_dict cross_attention_kwargs clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"
)


class LatentConsistencyModelPipeline(StableDiffusionBase):
    """Text to image in a few steps (arXiv:2310.04378)."""

    family = LatentConsistency
    task = FewSteps(FromNoise())
    model_cpu_offload_seq = "text_encoder->unet->vae"
    __init__ = constructor(LatentConsistency)
    __call__ = call(
        "prompt height width num_inference_steps original_inference_steps timesteps guidance_scale " + _REST,
        output=StableDiffusionPipelineOutput,
        earlier_callback=True,
        num_inference_steps=4,
        guidance_scale=8.5,
    )


class LatentConsistencyModelImg2ImgPipeline(StableDiffusionBase):
    """A picture and a text to a picture in a few steps."""

    family = LatentConsistency
    task = FewSteps(FromImage())
    model_cpu_offload_seq = "text_encoder->unet->vae"
    __init__ = constructor(LatentConsistency)
    __call__ = call(
        "prompt image num_inference_steps strength original_inference_steps timesteps guidance_scale "
        + _REST,
        output=StableDiffusionPipelineOutput,
        earlier_callback=True,
        num_inference_steps=4,
        guidance_scale=8.5,
    )
