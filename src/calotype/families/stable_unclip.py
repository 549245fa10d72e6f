"""Stable unCLIP: Stable Diffusion that is told the CLIP embedding of a picture, imagined by a prior or seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion.family import component
from calotype.diffusion.inputs import Original, Prompt, Seen
from calotype.families.stable_diffusion import StableDiffusionFamily

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
    )

    from calotype.diffusion.call import Call
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.prior_transformer import PriorTransformer
    from calotype.models.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.schedulers.scheduler import SchedulerMixin


@dataclass(frozen=True)
class StableUnCLIP(StableDiffusionFamily):
    """The family bound to its components, those of its prior among them."""

    # the prior reads the prompt too, as plain text
    beside: ClassVar[tuple[str, ...]] = tuple(
        name for name in StableDiffusionFamily.beside if name != "prompt_weighting"
    )

    prior_tokenizer: CLIPTokenizer = component()
    prior_text_encoder: CLIPTextModelWithProjection = component()
    prior: PriorTransformer = component()
    prior_scheduler: SchedulerMixin = component()
    image_normalizer: StableUnCLIPImageNormalizer = component()
    image_noising_scheduler: SchedulerMixin = component()
    tokenizer: CLIPTokenizer = component()
    text_encoder: CLIPTextModel = component()
    unet: UNet2DConditionModel = component()
    scheduler: SchedulerMixin = component()
    vae: AutoencoderKL = component()

    def seen(self, call: Call) -> torch.Tensor:
        """The embedding that the prior imagined for each picture, (pictures, channels)."""
        return call.arguments["image_embeds"]


@dataclass(frozen=True)
class StableUnCLIPVariation(StableDiffusionFamily):
    """The family that is told what a given picture shows, bound to its components."""

    feature_extractor: CLIPImageProcessor = component()
    image_encoder: CLIPVisionModelWithProjection = component()
    image_normalizer: StableUnCLIPImageNormalizer = component()
    image_noising_scheduler: SchedulerMixin = component()
    tokenizer: CLIPTokenizer = component()
    text_encoder: CLIPTextModel = component()
    unet: UNet2DConditionModel = component()
    scheduler: SchedulerMixin = component()
    vae: AutoencoderKL = component()

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        """The prompt, by default an empty one for each picture that is given."""
        given = given_pictures(arguments, "image_embeds")
        if arguments.get("prompt") is None and arguments.get("prompt_embeds") is None:
            arguments = {**arguments, "prompt": [""] * given}
        subject = Prompt.of(arguments)
        if given not in (1, subject.prompts):
            raise InputError(
                f"There are {given} pictures for {subject.prompts} prompts; give one for all or one for each."
            )
        return subject

    def seen(self, call: Call) -> torch.Tensor:
        """The embedding of each given picture, (given, channels)."""
        return seen(self.image_encoder, self.feature_extractor, call, "image_embeds")


def given_pictures(arguments: Mapping[str, Any], embeds: str) -> int:
    """How many pictures a call has, as ``image`` or by the argument ``embeds``; ``InputError`` unless one is given."""
    embedded = getattr(Seen.of(arguments), embeds)
    if (arguments.get("image") is None) == (embedded is None):
        raise InputError(f"Give either image or {embeds}, one of them.")
    return Original.of(arguments).given if embedded is None else len(embedded)


def seen(encoder: Any, extractor: Any, call: Call, embeds: str) -> torch.Tensor:
    """CLIP's embeddings of a call's ``image``, or those given by the argument ``embeds``: (given, channels)."""
    embedded = getattr(Seen.of(call.arguments), embeds)
    if embedded is not None:
        return embedded.to(call.device, encoder.dtype)
    pixels = Original.of(call.arguments).image
    if not isinstance(pixels, torch.Tensor):
        pixels = extractor(images=pixels, return_tensors="pt").pixel_values
    return encoder(pixels.to(call.device, encoder.dtype)).image_embeds
