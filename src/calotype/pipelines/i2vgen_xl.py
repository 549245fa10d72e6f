"""Videos from a picture and a text (I2VGen-XL)."""

from __future__ import annotations

from typing import ClassVar

from calotype.diffusion.tasks.from_first_frame import FromFirstFrame
from calotype.families.i2vgen_xl import I2VGenXL
from calotype.pipelines.outputs import I2VGenXLPipelineOutput
from calotype.pipelines.signature import call, constructor
from calotype.pipelines.stable_diffusion import StableDiffusionBase
from calotype.pipelines.videos import WithVideos


class I2VGenXLPipeline(StableDiffusionBase, WithVideos):
    """A picture and a text to a video (arXiv:2311.04145)."""

    family = I2VGenXL
    task = FromFirstFrame()
    _optional_components: ClassVar[tuple[str, ...]] = ()
    _exclude_from_cpu_offload: ClassVar[tuple[str, ...]] = ()
    __init__ = constructor(I2VGenXL)
    __call__ = call(
        "prompt image height width target_fps num_frames num_inference_steps guidance_scale negative_prompt eta "
        "num_videos_per_prompt decode_chunk_size generator latents prompt_embeds negative_prompt_embeds output_type "
        "return_dict cross_attention_kwargs clip_skip",
        output=I2VGenXLPipelineOutput,
        height=704,
        width=1280,
        num_frames=16,
        guidance_scale=9.0,
        decode_chunk_size=1,
        clip_skip=1,
    )
