"""AnimateDiff pipelines: Stable Diffusion that moves, from text, from videos and steered by pictures."""

from __future__ import annotations

from typing import ClassVar

from calotype.diffusion.controls.frames import EachFrame, SparseFrames
from calotype.diffusion.tasks.frames_from_noise import FramesFromNoise
from calotype.diffusion.tasks.from_video import FromVideo
from calotype.families.animatediff import (
    AnimateDiff,
    AnimateDiffPAG,
    AnimateDiffWithControlNet,
    AnimateDiffWithSparseControlNet,
    AnimateDiffXL,
)
from calotype.pipelines.free import WithFreeInit, WithFreeNoise
from calotype.pipelines.outputs import AnimateDiffPipelineOutput
from calotype.pipelines.pag import PerturbedAttentionBase
from calotype.pipelines.signature import call, constructor, renamed
from calotype.pipelines.stable_diffusion import StableDiffusionBase
from calotype.pipelines.stable_diffusion_xl import StableDiffusionXLBase
from calotype.pipelines.videos import WithVideos

_PARTS = "vae text_encoder tokenizer unet motion_adapter scheduler feature_extractor image_encoder"
_STEERED = (
    "vae text_encoder tokenizer unet motion_adapter controlnet scheduler feature_extractor image_encoder"
)

_TEXT = "guidance_scale negative_prompt num_videos_per_prompt eta generator latents prompt_embeds "
_TEXT += "negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds "
_VIDEO = "video prompt height width num_inference_steps enforce_inference_steps timesteps sigmas "
_VIDEO += _TEXT.replace("guidance_scale ", "guidance_scale strength ")
_OUTPUT = "output_type return_dict cross_attention_kwargs "
_CONTROL = "controlnet_conditioning_scale guess_mode control_guidance_start control_guidance_end "
_XL_PARTS = (
    "vae text_encoder text_encoder_2 tokenizer tokenizer_2 unet motion_adapter scheduler image_encoder "
)
_XL_PARTS += "feature_extractor force_zeros_for_empty_prompt"
_XL_TEXT = "negative_prompt negative_prompt_2 num_videos_per_prompt eta generator latents prompt_embeds "
_XL_TEXT += "negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds ip_adapter_image "
_XL_TEXT += "ip_adapter_image_embeds "
_XL_SIZES = "original_size crops_coords_top_left target_size negative_original_size "
_XL_SIZES += "negative_crops_coords_top_left negative_target_size "
_LAST = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs "


class AnimateDiffBase(StableDiffusionBase, WithVideos, WithFreeInit):
    """What the pipelines of Stable Diffusion that moves share; abstract."""

    family = AnimateDiff
    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar[tuple[str, ...]] = ("feature_extractor", "image_encoder", "motion_adapter")
    _exclude_from_cpu_offload: ClassVar[tuple[str, ...]] = ()
    __init__ = constructor(AnimateDiff, _PARTS)


class AnimateDiffPipeline(AnimateDiffBase, WithFreeNoise):
    """Text to video with a Stable Diffusion checkpoint and a motion adapter (arXiv:2307.04725)."""

    task = FramesFromNoise()
    __call__ = call(
        "prompt num_frames height width num_inference_steps " + _TEXT + _OUTPUT + _LAST + "decode_chunk_size",
        output=AnimateDiffPipelineOutput,
        earlier_callback=True,
        num_frames=16,
        decode_chunk_size=16,
    )


class AnimateDiffVideoToVideoPipeline(AnimateDiffBase, WithFreeNoise):
    """A video and a text to a video."""

    task = FromVideo()
    __call__ = call(
        _VIDEO + _OUTPUT + _LAST + "decode_chunk_size",
        output=AnimateDiffPipelineOutput,
        decode_chunk_size=16,
    )


class AnimateDiffControlNetPipeline(AnimateDiffBase, WithFreeNoise):
    """A text and a control picture for each frame to a video."""

    family = AnimateDiffWithControlNet
    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[tuple[str, ...]] = ("feature_extractor", "image_encoder")
    task = FramesFromNoise()
    controls = (EachFrame(),)
    __init__ = constructor(AnimateDiffWithControlNet, _STEERED, required="controlnet")
    __call__ = call(
        "prompt num_frames height width num_inference_steps "
        + _TEXT + "conditioning_frames " + _OUTPUT + _CONTROL + _LAST + "decode_chunk_size",
        output=AnimateDiffPipelineOutput,
        num_frames=16,
        decode_chunk_size=16,
    )  # fmt: skip


class AnimateDiffVideoToVideoControlNetPipeline(AnimateDiffBase, WithFreeNoise):
    """A video, a text and a control picture for each frame to a video."""

    family = AnimateDiffWithControlNet
    task = FromVideo()
    controls = (EachFrame(),)
    __init__ = constructor(AnimateDiffWithControlNet, _STEERED, required="controlnet")
    __call__ = call(
        _VIDEO + "conditioning_frames " + _OUTPUT + _CONTROL + _LAST + "decode_chunk_size",
        output=AnimateDiffPipelineOutput,
        decode_chunk_size=16,
    )


class AnimateDiffSparseControlNetPipeline(AnimateDiffBase):
    """A text and pictures for some frames to a video (SparseCtrl, arXiv:2311.16933)."""

    family = AnimateDiffWithSparseControlNet
    task = FramesFromNoise()
    controls = (SparseFrames(),)
    __init__ = constructor(AnimateDiffWithSparseControlNet, _STEERED, required="controlnet")
    __call__ = call(
        "prompt height width num_frames num_inference_steps " + _TEXT + "conditioning_frames " + _OUTPUT
        + "controlnet_conditioning_scale controlnet_frame_indices guess_mode " + _LAST,
        output=AnimateDiffPipelineOutput,
        num_frames=16,
    )  # fmt: skip


class AnimateDiffPAGPipeline(PerturbedAttentionBase, AnimateDiffBase, WithFreeNoise):
    """Text to video with perturbed-attention guidance (arXiv:2403.17377)."""

    family = AnimateDiffPAG
    task = FramesFromNoise()
    __init__ = constructor(AnimateDiffPAG, _PARTS + " pag_applied_layers")
    __call__ = call(
        "prompt num_frames height width num_inference_steps "
        + _TEXT + _OUTPUT + _LAST + "decode_chunk_size pag_scale pag_adaptive_scale",
        output=AnimateDiffPipelineOutput,
        num_frames=16,
        decode_chunk_size=16,
    )  # fmt: skip


class AnimateDiffSDXLPipeline(StableDiffusionXLBase, WithVideos, WithFreeInit):
    """Text to video with a Stable Diffusion XL checkpoint and a motion adapter."""

    family = AnimateDiffXL
    task = FramesFromNoise()
    encode_prompt = renamed(
        StableDiffusionXLBase.encode_prompt, num_images_per_prompt="num_videos_per_prompt"
    )
    __init__ = constructor(AnimateDiffXL, _XL_PARTS, required="motion_adapter")
    __call__ = call(
        "prompt prompt_2 num_frames height width num_inference_steps timesteps sigmas denoising_end guidance_scale "
        + _XL_TEXT + _OUTPUT + "guidance_rescale " + _XL_SIZES + _LAST,
        output=AnimateDiffPipelineOutput,
        num_frames=16,
        guidance_scale=5.0,
    )  # fmt: skip
