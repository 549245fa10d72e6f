"""unCLIP pipelines: a picture's embedding, a small picture of it, a large one."""

from __future__ import annotations

from calotype.diffusion.parts import Stage
from calotype.diffusion.tasks.enlarge import Enlarge
from calotype.diffusion.tasks.from_noise import FromNoise
from calotype.families.prior import Prior
from calotype.families.unclip import Decoder, SuperResolution, UnCLIP, UnCLIPVariation, VariationDecoder
from calotype.pipelines.outputs import ImagePipelineOutput
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.signature import call, constructor


class UnCLIPPipeline(DiffusionPipeline):
    """Text to image through the embedding of a picture, which a prior imagines (arXiv:2204.06125)."""

    family = SuperResolution
    task = Enlarge()
    prefix = "super_res"
    stages = (
        Stage("prior", Prior, FromNoise(), gives="image_embeds"),
        Stage("decoder", Decoder, FromNoise(), gives="small_image"),
    )
    model_cpu_offload_seq = "text_encoder->text_proj->decoder->super_res_first->super_res_last"
    _exclude_from_cpu_offload = ("prior",)
    __init__ = constructor(UnCLIP)
    __call__ = call(
        "prompt num_images_per_prompt prior_num_inference_steps decoder_num_inference_steps "
        "super_res_num_inference_steps generator prior_latents decoder_latents super_res_latents text_model_output "
        "text_attention_mask prior_guidance_scale decoder_guidance_scale output_type return_dict",
        output=ImagePipelineOutput,
    )


class UnCLIPImageVariationPipeline(DiffusionPipeline):
    """Pictures that show what a picture shows, from CLIP's embedding of it."""

    family = SuperResolution
    task = Enlarge()
    prefix = "super_res"
    stages = (Stage("decoder", VariationDecoder, FromNoise(), gives="small_image"),)
    model_cpu_offload_seq = "text_encoder->image_encoder->text_proj->decoder->super_res_first->super_res_last"
    __init__ = constructor(UnCLIPVariation)
    __call__ = call(
        "image num_images_per_prompt decoder_num_inference_steps super_res_num_inference_steps generator "
        "decoder_latents super_res_latents image_embeddings decoder_guidance_scale output_type return_dict",
        output=ImagePipelineOutput,
    )
