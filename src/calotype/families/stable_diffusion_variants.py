"""Stable Diffusion with other components beside the denoiser: a depth estimator, a second scheduler; or
with few steps, as a latent consistency model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.diffusion.family import component, option
from calotype.families.stable_diffusion import StableDiffusionFamily, check_safety, screened

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
        DPTForDepthEstimation,
        DPTImageProcessor,
    )

    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.pipelines.safety_checker import StableDiffusionSafetyChecker
    from calotype.schedulers.ddpm import DDPMScheduler
    from calotype.schedulers.distilled import LCMScheduler
    from calotype.schedulers.scheduler import SchedulerMixin

logger = logging.getLogger(__name__)

UPSCALER_SCALING_FACTOR = 0.08333
"""The unit of the published upscaler's latents, which its first files left out."""


@dataclass(frozen=True)
class StableDiffusionDepth(StableDiffusionFamily):
    """The family with an estimator of depth."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: SchedulerMixin = component()
    depth_estimator: DPTForDepthEstimation = component()
    feature_extractor: DPTImageProcessor = component()


@dataclass(frozen=True)
class LatentConsistency(StableDiffusionFamily):
    """The family distilled to few steps and to one prediction a step, which is told the guidance scale."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: LCMScheduler = component()
    safety_checker: StableDiffusionSafetyChecker = component()
    feature_extractor: CLIPImageProcessor = component()
    image_encoder: CLIPVisionModelWithProjection | None = component(None)
    requires_safety_checker: bool = option(True)

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse a safety checker without its feature extractor."""
        check_safety(values)
        return values

    def screen(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        return screened(self.safety_checker, self.feature_extractor, images, self.text_dtype)


@dataclass(frozen=True)
class StableDiffusionUpscaler(StableDiffusionFamily):
    """The family that enlarges pictures four times; ``low_res_scheduler`` noises what it enlarges."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    unet: UNet2DConditionModel = component()
    low_res_scheduler: DDPMScheduler = component()
    scheduler: SchedulerMixin = component()
    safety_checker: Any | None = component(None)
    feature_extractor: CLIPImageProcessor | None = component(None)
    watermarker: Any | None = component(None)
    max_noise_level: int = option(350)

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Give the autoencoder of early checkpoints the unit of its latents."""
        vae = values["vae"]
        if vae is not None and vae.config.scaling_factor != UPSCALER_SCALING_FACTOR:
            logger.warning(
                "The upscaler's autoencoder has scaling_factor=%s; using %s, which its first files left out.",
                vae.config.scaling_factor,
                UPSCALER_SCALING_FACTOR,
            )
            vae.register_to_config(scaling_factor=UPSCALER_SCALING_FACTOR)
        return values

    def screen(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        return screened(self.safety_checker, self.feature_extractor, images, self.text_dtype)
