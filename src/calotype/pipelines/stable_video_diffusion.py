"""Videos that begin with a picture (Stable Video Diffusion)."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from calotype.diffusion.parts import Parts
from calotype.diffusion.tasks.animate import Animate
from calotype.families.stable_video_diffusion import StableVideoDiffusion
from calotype.pipelines.adapters import Adapters
from calotype.pipelines.generation import generate
from calotype.pipelines.outputs import StableVideoDiffusionPipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.videos import WithVideos


def animated(pipe: Any, parts: Parts, arguments: Mapping[str, Any], output: type) -> Any:
    """As many frames as the model was trained with, if not asked for; without ``return_dict`` the videos alone."""
    asked = arguments["num_frames"]
    frames = pipe.unet.config.num_frames if asked is None else asked
    result = generate(pipe, parts, {**arguments, "num_frames": frames}, output)
    return result[0] if isinstance(result, tuple) else result


class StableVideoDiffusionPipeline(Adapters, WithVideos):
    """A picture to a video (arXiv:2311.15127)."""

    family = StableVideoDiffusion
    task = Animate()
    model_cpu_offload_seq = "image_encoder->unet->vae"
    _lora_loadable_modules = ("unet",)
    __init__ = constructor(StableVideoDiffusion)
    __call__ = call(
        "image height width num_frames num_inference_steps sigmas min_guidance_scale max_guidance_scale fps "
        "motion_bucket_id noise_aug_strength decode_chunk_size num_videos_per_prompt generator latents output_type "
        "callback_on_step_end callback_on_step_end_tensor_inputs return_dict",
        output=StableVideoDiffusionPipelineOutput,
        by=animated,
        image=Parameter.empty,
        height=576,
        width=1024,
        num_inference_steps=25,
    )
