"""calotype: diffusion models that make pictures, drop-in compatible with Diffusers' names, files and numbers.

Every public name stands in the table below and is imported on first use, so that ``import calotype`` costs
nothing and a name costs only what it stands on.
"""

from __future__ import annotations

import importlib
from typing import Any

from calotype.core.version import __version__

_HOME = {
    "calotype.core.config": ("ConfigMixin",),
    "calotype.core.random": ("seeds",),
    "calotype.diffusion.limits": ("limits", "set_limits"),
    "calotype.pipelines.animatediff": (
        "AnimateDiffControlNetPipeline",
        "AnimateDiffPAGPipeline",
        "AnimateDiffPipeline",
        "AnimateDiffSDXLPipeline",
        "AnimateDiffSparseControlNetPipeline",
        "AnimateDiffVideoToVideoControlNetPipeline",
        "AnimateDiffVideoToVideoPipeline",
    ),
    "calotype.pipelines.auto": (
        "AutoPipelineForImage2Image",
        "AutoPipelineForInpainting",
        "AutoPipelineForText2Image",
    ),
    "calotype.pipelines.control": ("control",),
    "calotype.pipelines.controlnet": (
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
    ),
    "calotype.pipelines.controlnet_union": (
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
    ),
    "calotype.pipelines.i2vgen_xl": ("I2VGenXLPipeline",),
    "calotype.pipelines.kandinsky_2_0": (
        "KandinskyV20Img2ImgPipeline",
        "KandinskyV20InpaintPipeline",
        "KandinskyV20Pipeline",
    ),
    "calotype.pipelines.kandinsky_2_1": (
        "KandinskyImg2ImgPipeline",
        "KandinskyInpaintPipeline",
        "KandinskyPipeline",
    ),
    "calotype.pipelines.kandinsky_2_2": (
        "KandinskyV22ControlnetImg2ImgPipeline",
        "KandinskyV22ControlnetPipeline",
        "KandinskyV22Img2ImgPipeline",
        "KandinskyV22InpaintPipeline",
        "KandinskyV22Pipeline",
    ),
    "calotype.pipelines.kandinsky_3": ("Kandinsky3Img2ImgPipeline", "Kandinsky3Pipeline"),
    "calotype.pipelines.kandinsky_combined": (
        "KandinskyCombinedPipeline",
        "KandinskyImg2ImgCombinedPipeline",
        "KandinskyInpaintCombinedPipeline",
        "KandinskyV22CombinedPipeline",
        "KandinskyV22Img2ImgCombinedPipeline",
        "KandinskyV22InpaintCombinedPipeline",
    ),
    "calotype.pipelines.kandinsky_prior": (
        "KandinskyPriorPipeline",
        "KandinskyV22PriorEmb2EmbPipeline",
        "KandinskyV22PriorPipeline",
    ),
    "calotype.pipelines.latent_consistency": (
        "LatentConsistencyModelImg2ImgPipeline",
        "LatentConsistencyModelPipeline",
    ),
    "calotype.pipelines.load": ("load",),
    "calotype.pipelines.pag": (
        "StableDiffusionControlNetPAGInpaintPipeline",
        "StableDiffusionControlNetPAGPipeline",
        "StableDiffusionPAGImg2ImgPipeline",
        "StableDiffusionPAGInpaintPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        "StableDiffusionXLControlNetPAGPipeline",
        "StableDiffusionXLPAGImg2ImgPipeline",
        "StableDiffusionXLPAGInpaintPipeline",
        "StableDiffusionXLPAGPipeline",
    ),
    "calotype.pipelines.outputs": ("ImagePipelineOutput", "KandinskyPriorPipelineOutput"),
    "calotype.pipelines.pipeline": ("DiffusionPipeline",),
    "calotype.pipelines.safety_checker": ("StableDiffusionSafetyChecker",),
    "calotype.pipelines.stable_diffusion": (
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionPipeline",
    ),
    "calotype.pipelines.stable_diffusion_xl": (
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
        "StableDiffusionXLPipeline",
    ),
    "calotype.pipelines.stable_diffusion_editing": (
        "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionImageVariationPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionLatentUpscalePipeline",
        "StableDiffusionUpscalePipeline",
    ),
    "calotype.pipelines.t2i_adapter": ("StableDiffusionAdapterPipeline", "StableDiffusionXLAdapterPipeline"),
    "calotype.pipelines.stable_unclip": ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline"),
    "calotype.pipelines.stable_video_diffusion": ("StableVideoDiffusionPipeline",),
    "calotype.pipelines.text_to_video": ("TextToVideoSDPipeline", "VideoToVideoSDPipeline"),
    "calotype.pipelines.text_to_video_zero": ("TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline"),
    "calotype.pipelines.unclip": ("UnCLIPImageVariationPipeline", "UnCLIPPipeline"),
    "calotype.pipelines.latent_diffusion": ("LDMSuperResolutionPipeline", "LDMTextToImagePipeline"),
    "calotype.pipelines.unconditional": ("DDIMPipeline", "DDPMPipeline"),
    "calotype.models.modeling": ("ModelMixin",),
    "calotype.models.unet_2d": ("UNet2DModel",),
    "calotype.models.unet_2d_condition": ("UNet2DConditionModel",),
    "calotype.models.unet_3d_condition": ("UNet3DConditionModel",),
    "calotype.models.unet_spatio_temporal_condition": ("UNetSpatioTemporalConditionModel",),
    "calotype.models.unet_i2vgen_xl": ("I2VGenXLUNet",),
    "calotype.models.unet_motion_model": ("UNetMotionModel",),
    "calotype.models.motion_adapter": ("MotionAdapter",),
    "calotype.models.sparse_controlnet": ("SparseControlNetModel",),
    "calotype.models.controlnet": ("ControlNetModel",),
    "calotype.models.controlnet_union": ("ControlNetUnionModel",),
    "calotype.models.multicontrolnet": ("MultiControlNetModel",),
    "calotype.models.multicontrolnet_union": ("MultiControlNetUnionModel",),
    "calotype.models.t2i_adapter": ("MultiAdapter", "T2IAdapter"),
    "calotype.models.autoencoder_kl": ("AutoencoderKL",),
    "calotype.models.autoencoder_kl_temporal_decoder": ("AutoencoderKLTemporalDecoder",),
    "calotype.models.autoencoder_tiny": ("AutoencoderTiny",),
    "calotype.models.vq_model": ("VQModel",),
    "calotype.models.prior_transformer": ("PriorTransformer",),
    "calotype.models.ldm_bert": ("LDMBertModel",),
    "calotype.models.stable_unclip_image_normalizer": ("StableUnCLIPImageNormalizer",),
    "calotype.models.unclip_text_proj": ("UnCLIPTextProjModel",),
    "calotype.models.kandinsky3_unet": ("Kandinsky3UNet",),
    "calotype.models.kandinsky_v20_text_proj": ("KandinskyV20TextProjModel",),
    "calotype.models.multilingual_clip": ("MultilingualCLIP",),
    "calotype.schedulers.scheduler": ("SchedulerMixin",),
    "calotype.schedulers.names": ("Scheduler", "scheduler_named"),
    "calotype.schedulers.ddpm": (
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "UnCLIPScheduler",
        "DDPMWuerstchenScheduler",
    ),
    "calotype.schedulers.ddim": (
        "DDIMScheduler",
        "DDIMParallelScheduler",
        "DDIMInverseScheduler",
        "RePaintScheduler",
    ),
    "calotype.schedulers.cogvideox": ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"),
    "calotype.schedulers.pndm": ("PNDMScheduler", "IPNDMScheduler"),
    "calotype.schedulers.distilled": (
        "LCMScheduler",
        "TCDScheduler",
        "CMStochasticIterativeScheduler",
        "SCMScheduler",
    ),
    "calotype.schedulers.flow_match": (
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
    ),
    "calotype.schedulers.variance_exploding": ("ScoreSdeVeScheduler", "KarrasVeScheduler"),
    "calotype.schedulers.discrete": ("VQDiffusionScheduler", "AmusedScheduler"),
    "calotype.schedulers.euler": ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    "calotype.schedulers.second_order": (
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
    ),
    "calotype.schedulers.dpm_solver": (
        "DPMSolverMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverSinglestepScheduler",
        "DEISMultistepScheduler",
    ),
    "calotype.schedulers.predictor_corrector": ("UniPCMultistepScheduler", "SASolverScheduler"),
    "calotype.schedulers.edm": (
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "CosineDPMSolverMultistepScheduler",
    ),
    "calotype.training.fine_tuning.pixels": ("train_unconditional", "train_vae"),
    "calotype.training.fine_tuning.controlnet": ("train_controlnet",),
    "calotype.training.fine_tuning.inpainting": ("train_inpainting",),
    "calotype.training.fine_tuning.lcm": ("train_lcm",),
    "calotype.training.fine_tuning.recipes": (
        "train_dreambooth",
        "train_lora",
        "train_text_to_image",
        "train_textual_inversion",
    ),
}
"""Module -> the public names that it defines."""

_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

_MODULES = ("acceleration", "annotators", "compat", "guidance", "utils")
"""The public modules."""

__all__ = ["__version__", *_MODULE_OF, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"calotype.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"calotype has no {name!r}.")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
