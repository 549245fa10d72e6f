"""Stable Diffusion 1.x and 2.x (arXiv:2112.10752): CLIP text, a UNet on the latents of a KL autoencoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import repeated
from calotype.diffusion.family import component, option
from calotype.diffusion.guidance import TOLD_THE_PROMPT
from calotype.diffusion.images import present
from calotype.diffusion.inputs import Prompt
from calotype.families import clip_text, image_prompt
from calotype.families.guided_unet import embedded_scale
from calotype.families.latent_unet import LatentUNetFamily, UNetConditions

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from calotype.diffusion.call import Call
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.controlnet import ControlNetModel
    from calotype.models.multicontrolnet import MultiControlNetModel
    from calotype.models.t2i_adapter import MultiAdapter, T2IAdapter
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.pipelines.safety_checker import StableDiffusionSafetyChecker
    from calotype.schedulers.scheduler import SchedulerMixin

logger = logging.getLogger(__name__)


class StableDiffusionFamily(LatentUNetFamily):
    """CLIP text and a UNet on the latents of a KL autoencoder; abstract: a family states its components."""

    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    tensor_names: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "negative_prompt_embeds")
    beside: ClassVar[tuple[str, ...]] = (
        *LatentUNetFamily.beside, "prompt_chunks", "prompt_weighting", "ip_adapter_scale",
    )  # fmt: skip
    skips_in_negatives: ClassVar[bool] = False
    """Whether ``clip_skip`` concerns the negative prompt, too; in Stable Diffusion it never has."""

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return Prompt.of(arguments)

    def check(self, arguments: Mapping[str, Any]) -> None:
        image_prompt.check(self, arguments)

    def encode(self, call: Call) -> UNetConditions:
        guided = "uncond" in call.guidance.branches
        return self.conditions(call, *self.embed(call.subject, guided, call.device))

    def conditions(self, call: Call, cond: torch.Tensor, uncond: torch.Tensor | None) -> UNetConditions:
        """What the branches are told, with these embeddings of prompt and negative prompt."""
        other = cond if uncond is None else uncond
        return UNetConditions(
            prompt_embeds=torch.cat(
                [cond if name in TOLD_THE_PROMPT else other for name in call.guidance.branches]
            ),
            negative_prompt_embeds=uncond,
            w_embedding=embedded_scale(self.unet, call),
            cross_attention_kwargs=image_prompt.attention_arguments(self, call),
        )

    def embed(
        self, subject: Prompt, guided: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prompt and negative prompt as (pictures, tokens, channels); no negative where there is no guidance."""
        cond, uncond = subject.prompt_embeds, subject.negative_prompt_embeds
        texts = subject.texts or ()
        negatives = subject.negative_texts if guided and uncond is None else ()
        if negatives and self.text_encoder is None:
            raise InputError(
                "Without a text encoder, guidance needs negative_prompt_embeds beside prompt_embeds."
            )
        laid = clip_text.layout(
            subject, clip_text.Reading(self.tokenizer, self.text_encoder, (*texts, *negatives))
        )
        if texts:
            length = self.tokenizer.model_max_length
            cond = clip_text.encode(
                self.text_encoder, self.tokenizer, texts, length, subject.clip_skip, laid, clip_text.CHUNKS
            )
        assert cond is not None
        if negatives:
            skip = subject.clip_skip if self.skips_in_negatives else None
            uncond = clip_text.encode(self.text_encoder, self.tokenizer, negatives, cond.shape[1], skip, laid)

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


@dataclass(frozen=True)
class StableDiffusionWithAdapter(StableDiffusion):
    """The family with one or several T2I-Adapters beside its denoiser."""

    adapter: T2IAdapter | MultiAdapter = component(None)

    @property
    def picture_step(self) -> int:
        return self.adapter.downscale_factor


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
