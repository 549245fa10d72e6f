"""Unconditional pipelines: pictures from noise alone."""

from __future__ import annotations

from typing import Any

from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.families.pixels import Pixels
from calotype.pipelines.outputs import ImagePipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor


class DDPMPipeline(DiffusionPipeline):
    """Denoising diffusion probabilistic models (arXiv:2006.11239)."""

    family = Pixels
    task = FromNoise()
    model_cpu_offload_seq = "unet"

    __init__ = constructor(Pixels)
    __call__ = call(
        "batch_size generator num_inference_steps output_type return_dict",
        output=ImagePipelineOutput,
        num_inference_steps=1000,
    )


class _Deterministic(Pixels):
    """The pixel family with its scheduler read as DDIM."""

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Any scheduler's configuration makes a DDIM scheduler."""
        from calotype.schedulers.ddim import DDIMScheduler

        return {**values, "scheduler": DDIMScheduler.from_config(values["scheduler"].config)}


class DDIMPipeline(DiffusionPipeline):
    """Denoising diffusion implicit models (arXiv:2010.02502)."""

    family = _Deterministic
    task = FromNoise()
    model_cpu_offload_seq = "unet"

    __init__ = constructor(_Deterministic)
    __call__ = call(
        "batch_size generator eta num_inference_steps use_clipped_model_output output_type return_dict",
        output=ImagePipelineOutput,
    )
