"""Videos from texts with models of pictures alone (Text2Video-Zero)."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from calotype.diffusion.parts import Parts
from calotype.diffusion.tasks.zero_shot import ZeroShot
from calotype.families.stable_diffusion import StableDiffusion
from calotype.families.stable_diffusion_xl import StableDiffusionXL
from calotype.pipelines.generation import generate
from calotype.pipelines.outputs import TextToVideoPipelineOutput, TextToVideoSDXLPipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase
from calotype.pipelines.stable_diffusion_xl import StableDiffusionXLBase


def as_arrays(pipe: Any, parts: Parts, arguments: Mapping[str, Any], output: type) -> Any:
    """``output_type="tensor"``, which these pipelines have as their default, means arrays."""
    kind = arguments["output_type"]
    return generate(pipe, parts, {**arguments, "output_type": "np" if kind == "tensor" else kind}, output)


class TextToVideoZeroPipeline(StableDiffusionBase):
    """Text to video with any Stable Diffusion checkpoint (arXiv:2303.13439)."""

    task = ZeroShot()
    __init__ = constructor(StableDiffusion, without="image_encoder")
    __call__ = call(
        "prompt video_length height width num_inference_steps guidance_scale negative_prompt num_videos_per_prompt eta "
        "generator latents motion_field_strength_x motion_field_strength_y output_type return_dict callback "
        "callback_steps t0 t1 frame_ids",
        output=TextToVideoPipelineOutput,
        by=as_arrays,
        prompt=Parameter.empty,
        output_type="tensor",
    )


class TextToVideoZeroSDXLPipeline(StableDiffusionXLBase):
    """Text to video with any Stable Diffusion XL checkpoint."""

    family = StableDiffusionXL
    task = ZeroShot()
    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    __init__ = constructor(StableDiffusionXL, without="requires_aesthetics_score")
    __call__ = call(
        "prompt prompt_2 video_length height width num_inference_steps denoising_end guidance_scale negative_prompt "
        "negative_prompt_2 num_videos_per_prompt eta generator frame_ids prompt_embeds negative_prompt_embeds "
        "pooled_prompt_embeds negative_pooled_prompt_embeds latents motion_field_strength_x motion_field_strength_y "
        "output_type return_dict callback callback_steps cross_attention_kwargs guidance_rescale original_size "
        "crops_coords_top_left target_size t0 t1",
        output=TextToVideoSDXLPipelineOutput,
        by=as_arrays,
        prompt=Parameter.empty,
        output_type="tensor",
    )
