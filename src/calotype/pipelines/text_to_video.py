"""Videos from texts, and from texts and videos (ModelScope, Zeroscope)."""

from __future__ import annotations

from typing import ClassVar

from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.diffusion.tasks.from_video import FromVideo
from calotype.families.text_to_video import TextToVideo
from calotype.pipelines.outputs import TextToVideoSDPipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase
from calotype.pipelines.videos import WithVideos


class TextToVideoBase(StableDiffusionBase, WithVideos):
    """What the pipelines of text-to-video share; abstract."""

    family = TextToVideo
    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[tuple[str, ...]] = ()
    _exclude_from_cpu_offload: ClassVar[tuple[str, ...]] = ()

    __init__ = constructor(TextToVideo)


class TextToVideoSDPipeline(TextToVideoBase):
    """Text to video (arXiv:2308.06571)."""

    task = FromNoise()
    __call__ = call(
        "prompt height width num_frames num_inference_steps guidance_scale negative_prompt eta generator latents "
        "prompt_embeds negative_prompt_embeds output_type return_dict callback callback_steps cross_attention_kwargs "
        "clip_skip",
        output=TextToVideoSDPipelineOutput,
        num_frames=16,
        guidance_scale=9.0,
        output_type="np",
    )


class VideoToVideoSDPipeline(TextToVideoBase):
    """A video and a text to a video, such as an enlarged video with its details filled in."""

    task = FromVideo()
    __call__ = call(
        "prompt video strength num_inference_steps guidance_scale negative_prompt eta generator latents prompt_embeds "
        "negative_prompt_embeds output_type return_dict callback callback_steps cross_attention_kwargs clip_skip",
        output=TextToVideoSDPipelineOutput,
        strength=0.6,
        guidance_scale=15.0,
        output_type="np",
    )
