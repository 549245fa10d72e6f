"""Variations of a picture: Stable Diffusion that reads CLIP's embedding of a picture in place of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.diffusion.conditions import repeated
from calotype.diffusion.family import component, option
from calotype.diffusion.guidance import TOLD_THE_PROMPT
from calotype.diffusion.inputs import Original
from calotype.families.latent_unet import LatentUNetFamily, UNetConditions
from calotype.families.stable_diffusion import check_safety, screened

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    from calotype.diffusion.call import Call
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.pipelines.safety_checker import StableDiffusionSafetyChecker
    from calotype.schedulers.scheduler import SchedulerMixin


@dataclass(frozen=True)
class ImageVariation(LatentUNetFamily):
    """The family bound to its components."""

    vae: AutoencoderKL = component()
    image_encoder: CLIPVisionModelWithProjection = component()
    unet: UNet2DConditionModel = component()
    scheduler: SchedulerMixin = component()
    safety_checker: StableDiffusionSafetyChecker = component()
    feature_extractor: CLIPImageProcessor = component()
    requires_safety_checker: bool = option(True)

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse a safety checker without its feature extractor."""
        check_safety(values)
        return values

    def subject(self, arguments: Mapping[str, Any]) -> Original:
        return Original.of(arguments)

    @property
    def dtype(self) -> torch.dtype:
        return self.image_encoder.dtype

    def encode(self, call: Call) -> UNetConditions:
        """The picture's embedding as one token; zeros where the branch is told nothing."""
        pixels = call.subject.image
        if not isinstance(pixels, torch.Tensor):
            pixels = self.feature_extractor(images=pixels, return_tensors="pt").pixel_values
        embeds = self.image_encoder(pixels.to(call.device, self.dtype)).image_embeds[:, None]
        cond = repeated(embeds, call.subject.repeats)
        nothing = torch.zeros_like(cond)
        return UNetConditions(
            torch.cat([cond if name in TOLD_THE_PROMPT else nothing for name in call.guidance.branches])
        )

    def screen(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        return screened(self.safety_checker, self.feature_extractor, images, self.dtype)
