"""Stable Diffusion 1.x and 2.x (arXiv:2112.10752): CLIP text, a UNet on the latents of a KL autoencoder."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion import codec
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.guidance import Guidance
from calotype.diffusion.images import present
from calotype.diffusion.inputs import Attention, Prompt
from calotype.families import clip_text
from calotype.families.family import Family, component, option
from calotype.families.guided_unet import (
    embedded_scale,
    refuse_image_prompt,
    sample_size,
    unet_guidance,
    vae_scale_factor,
)

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.controlnet import ControlNetModel
    from calotype.models.multicontrolnet import MultiControlNetModel
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.pipelines.safety_checker import StableDiffusionSafetyChecker
    from calotype.schedulers.scheduler import SchedulerMixin

logger = logging.getLogger(__name__)

SIZE_STEP = 8
"""Pixels that a size must divide by even where the autoencoder shrinks by less, as everywhere in this family."""


@dataclass(frozen=True)
class UNetConditions(Conditions):
    """What the UNet takes: text (branches·batch, tokens, channels), and the guidance scale where it is embedded."""

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None = None
    timestep_cond: torch.Tensor | None = None
    cross_attention_kwargs: dict[str, Any] | None = None
    class_labels: torch.Tensor | None = None


class StableDiffusionFamily(Family):
    """CLIP text and a UNet on the latents of a KL autoencoder; abstract: a family states its components."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel

    tensor_names: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "negative_prompt_embeds")

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return Prompt.of(arguments)

    @property
    def scale_factor(self) -> int:
        return vae_scale_factor(self.vae)

    @property
    def default_size(self) -> tuple[int, int]:
        height, width = sample_size(self.unet)
        return height * self.scale_factor, width * self.scale_factor

    @property
    def multiple(self) -> int:
        return math.lcm(SIZE_STEP, self.scale_factor)

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return unet_guidance(self.unet, arguments)

    def encode(self, call: Call) -> UNetConditions:
        refuse_image_prompt(call.arguments)
        cond, uncond = self.embed(call.subject, "uncond" in call.guidance.branches, call.device)
        other = cond if uncond is None else uncond
        return UNetConditions(
            prompt_embeds=torch.cat([cond if name == "cond" else other for name in call.guidance.branches]),
            negative_prompt_embeds=uncond,
            timestep_cond=embedded_scale(self.unet, call),
            cross_attention_kwargs=Attention.of(call.arguments).cross_attention_kwargs,
        )

    def embed(
        self, subject: Prompt, guided: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prompt and negative prompt as (pictures, tokens, channels); no negative where there is no guidance."""
        cond = subject.prompt_embeds
        if subject.texts is not None:
            length = self.tokenizer.model_max_length
            clip_text.warn_of_cut(self.tokenizer, subject.texts, length)
            cond = clip_text.encode(
                self.text_encoder, self.tokenizer, subject.texts, length, subject.clip_skip
            )
        assert cond is not None
        uncond = subject.negative_prompt_embeds
        if guided and uncond is None:
            if self.text_encoder is None:
                raise InputError(
                    "Without a text encoder, guidance needs negative_prompt_embeds beside prompt_embeds."
                )
            # clip_skip concerns the prompt alone, as it always has in this family
            uncond = clip_text.encode(
                self.text_encoder, self.tokenizer, subject.negative_texts, cond.shape[1]
            )

        def placed(embeds: torch.Tensor) -> torch.Tensor:
            return repeated(embeds.to(device, self.text_dtype), subject.repeats)

        return placed(cond), placed(uncond) if guided and uncond is not None else None

    @property
    def text_dtype(self) -> torch.dtype:
        """The type that embeddings are handed on in."""
        return self.unet.dtype if self.text_encoder is None else self.text_encoder.dtype

    @property
    def dtype(self) -> torch.dtype:
        return self.text_dtype

    @property
    def latent_channels(self) -> int:
        """Channels of a picture's latents."""
        return self.vae.config.latent_channels

    @property
    def input_channels(self) -> int:
        """Channels that the denoiser reads."""
        return self.unet.config.in_channels

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        assert isinstance(conditions, UNetConditions)
        return self.unet(
            latents,
            timestep,
            timestep_cond=conditions.timestep_cond,
            cross_attention_kwargs=conditions.cross_attention_kwargs,
            class_labels=conditions.class_labels,
            return_dict=False,
            **self.told(conditions),
            **residuals.as_arguments(),
        )[0]

    def told(self, conditions: Conditions) -> dict[str, Any]:
        """What every network that is conditioned as the UNet is takes, ControlNets included."""
        assert isinstance(conditions, UNetConditions)
        return {"encoder_hidden_states": conditions.prompt_embeds}

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        return codec.decode(self.vae, latents, generator)

    def to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return codec.encode(self.vae, pixels, generator)


@dataclass(frozen=True)
class StableDiffusion(StableDiffusionFamily):
    """The family bound to its components."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: SchedulerMixin = component()
    safety_checker: StableDiffusionSafetyChecker = component()
    feature_extractor: CLIPImageProcessor = component()
    image_encoder: CLIPVisionModelWithProjection | None = component(None)
    requires_safety_checker: bool = option(True)

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse a safety checker without its feature extractor; repair the scheduler settings of early checkpoints."""
        check_safety(values)
        return {**values, "scheduler": modern(values["scheduler"])}

    def screen(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        return screened(self.safety_checker, self.feature_extractor, images, self.text_dtype)


def screened(
    checker: Any, extractor: Any, images: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, list[bool] | None]:
    """Pictures in [0, 1] after a safety check, and which of them it blanked; None where there is no checker."""
    if checker is None:
        return images, None
    pixels = extractor(present(images, "pil"), return_tensors="pt").pixel_values
    return checker(images=images, clip_input=pixels.to(images.device, dtype))


def check_safety(values: dict[str, Any]) -> None:
    """Refuse a safety checker without its feature extractor; warn of a missing one."""
    if values["safety_checker"] is not None and values["feature_extractor"] is None:
        raise InputError(
            "A safety checker needs a feature extractor: pass feature_extractor=…, or safety_checker=None to go "
            "without."
        )
    if values["safety_checker"] is None and values["requires_safety_checker"]:
        logger.warning(
            "The safety checker is off (safety_checker=None): see to it that what you publish is filtered, as the "
            "licence of Stable Diffusion asks."
        )


@dataclass(frozen=True)
class StableDiffusionWithControlNet(StableDiffusion):
    """The family with one or several ControlNets beside its denoiser."""

    controlnet: ControlNetModel | MultiControlNetModel = component(None)

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """As without; a list of ControlNets becomes the group that files have."""
        return super().prepared({**values, "controlnet": grouped(values["controlnet"])})


def grouped(controlnet: Any) -> Any:
    """Several ControlNets, given as a list, as one."""
    if isinstance(controlnet, list | tuple):
        from calotype.models.multicontrolnet import MultiControlNetModel

        return MultiControlNetModel(list(controlnet))
    return controlnet


def modern(scheduler: Any) -> Any:
    """The scheduler with what early checkpoints' files leave out: steps_offset=1 and no clipping of latents."""
    if scheduler is None:
        return None
    config = scheduler.config
    repairs: dict[str, Any] = {}
    if config.get("steps_offset", 1) != 1:
        repairs["steps_offset"] = 1
    if config.get("clip_sample", False) is True:
        repairs["clip_sample"] = False
    if not repairs:
        return scheduler
    logger.warning(
        "The scheduler's configuration is from before these settings were fixed; using %s.", repairs
    )
    return type(scheduler).from_config({**config, **repairs})
