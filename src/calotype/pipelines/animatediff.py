"""AnimateDiff pipelines."""

from __future__ import annotations

from typing import ClassVar

from calotype.diffusion.tasks.frames_from_noise import FramesFromNoise
from calotype.families.animatediff import AnimateDiff
from calotype.pipelines.outputs import AnimateDiffPipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase
from calotype.pipelines.videos import WithVideos


class AnimateDiffPipeline(StableDiffusionBase, WithVideos):
    """Text to video with a Stable Diffusion checkpoint and a motion adapter (arXiv:2307.04725)."""

    family = AnimateDiff
    task = FramesFromNoise()
    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar[tuple[str, ...]] = ("feature_extractor", "image_encoder", "motion_adapter")
    _exclude_from_cpu_offload: ClassVar[tuple[str, ...]] = ()
    __init__ = constructor(AnimateDiff)
    __call__ = call(
        "prompt num_frames height width num_inference_steps guidance_scale negative_prompt num_videos_per_prompt eta "
        "generator latents prompt_embeds negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds output_type "
        "return_dict cross_attention_kwargs clip_skip callback_on_step_end callback_on_step_end_tensor_inputs "
        "decode_chunk_size",
        output=AnimateDiffPipelineOutput,
        earlier_callback=True,
        num_frames=16,
        decode_chunk_size=16,
    )
