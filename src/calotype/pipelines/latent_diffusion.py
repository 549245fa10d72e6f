"""The first pipelines of latent diffusion (arXiv:2112.10752)."""

from __future__ import annotations

from inspect import Parameter

from calotype.diffusion.tasks.enlarge import Enlarge
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.families.latent_diffusion import LatentDiffusion, LatentSuperResolution
from calotype.pipelines.outputs import ImagePipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor


class LDMTextToImagePipeline(DiffusionPipeline):
    """Text to image with a text encoder that was trained along."""

    family = LatentDiffusion
    task = FromNoise()
    model_cpu_offload_seq = "bert->unet->vqvae"
    __init__ = constructor(LatentDiffusion)
    __call__ = call(
        "prompt height width num_inference_steps guidance_scale eta generator latents output_type return_dict",
        output=ImagePipelineOutput,
        earlier_callback=True,
        prompt=Parameter.empty,
        guidance_scale=1.0,
    )


class LDMSuperResolutionPipeline(DiffusionPipeline):
    """A picture four times as large."""

    family = LatentSuperResolution
    task = Enlarge(in_latents=True)
    model_cpu_offload_seq = "unet->vqvae"
    __init__ = constructor(LatentSuperResolution)
    __call__ = call(
        "image batch_size num_inference_steps eta generator output_type return_dict",
        output=ImagePipelineOutput,
        num_inference_steps=100,
    )
