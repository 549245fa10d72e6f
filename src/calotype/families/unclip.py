"""unCLIP (arXiv:2204.06125; Karlo): a decoder from embeddings to small pictures, and what enlarges these."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from calotype.diffusion.conditions import Conditions, Nothing, repeated
from calotype.diffusion.family import Components, component
from calotype.diffusion.guidance import COND, UNCOND, Guidance, Unguided, classifier_free
from calotype.diffusion.inputs import Guide, Prompt
from calotype.diffusion.learned_variance import guiding_the_mean
from calotype.families.guided_unet import sample_size
from calotype.families.pixels import PixelFamily
from calotype.families.prior import read_by_branch, read_subject
from calotype.families.stable_unclip import given_pictures, seen

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
    )

    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.prior_transformer import PriorTransformer
    from calotype.models.unclip_text_proj import UnCLIPTextProjModel
    from calotype.models.unet_2d import UNet2DModel
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.schedulers.ddpm import UnCLIPScheduler


@dataclass(frozen=True)
class DecoderConditions(Conditions):
    """What the decoder takes: tokens to attend to, those that count, and an addition to the time; branches stacked."""

    encoder_hidden_states: torch.Tensor
    class_labels: torch.Tensor
    attention_mask: torch.Tensor


def silent_subject(arguments: Mapping[str, Any]) -> Prompt:
    """An empty prompt for each given picture."""
    return Prompt.of({**arguments, "prompt": [""] * given_pictures(arguments, "image_embeddings")})


class DecoderFamily(PixelFamily):
    """A UNet from the embedding of a picture, and a text, to a small picture.

    Abstract: a family states its components and where the embedding comes from.
    """

    decoder: UNet2DConditionModel
    text_encoder: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    text_proj: UnCLIPTextProjModel

    @property
    def default_size(self) -> tuple[int, int]:
        return sample_size(self.decoder)

    @property
    def latent_channels(self) -> int:
        return self.decoder.config.in_channels

    @property
    def input_channels(self) -> int:
        return self.decoder.config.in_channels

    @property
    def dtype(self) -> torch.dtype:
        return self.text_encoder.dtype

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return guiding_the_mean(classifier_free(Guide.of(arguments).guidance_scale), self.scheduler)

    @abstractmethod
    def seen(self, call: Call) -> torch.Tensor:
        """The embedding of each picture of the call, (pictures, channels)."""

    def encode(self, call: Call) -> DecoderConditions:
        text = read_by_branch(self, call, call.subject)
        tokens, time = self.text_proj(
            image_embeddings=self.seen(call),
            prompt_embeds=text.embeds,
            text_encoder_hidden_states=text.states,
            do_classifier_free_guidance=UNCOND in call.guidance.branches,
        )
        mask = F.pad(text.mask, (tokens.shape[1] - text.mask.shape[1], 0), value=True)
        return DecoderConditions(tokens, time, mask)

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        assert isinstance(conditions, DecoderConditions)
        return self.decoder(latents, timestep, return_dict=False, **conditions.tensors())[0]

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        return latents.clamp(-1, 1)


@dataclass(frozen=True)
class Decoder(DecoderFamily):
    """The decoder of what a prior imagined."""

    decoder: UNet2DConditionModel = component()
    text_encoder: CLIPTextModelWithProjection = component()
    tokenizer: CLIPTokenizer = component()
    text_proj: UnCLIPTextProjModel = component()
    scheduler: UnCLIPScheduler = component()

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return read_subject(arguments)

    def seen(self, call: Call) -> torch.Tensor:
        return call.arguments["image_embeds"]


@dataclass(frozen=True)
class VariationDecoder(DecoderFamily):
    """The decoder of what a given picture shows; its text is empty."""

    decoder: UNet2DConditionModel = component()
    text_encoder: CLIPTextModelWithProjection = component()
    tokenizer: CLIPTokenizer = component()
    text_proj: UnCLIPTextProjModel = component()
    feature_extractor: CLIPImageProcessor = component()
    image_encoder: CLIPVisionModelWithProjection = component()
    scheduler: UnCLIPScheduler = component()

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return silent_subject(arguments)

    def seen(self, call: Call) -> torch.Tensor:
        embeds = seen(self.image_encoder, self.feature_extractor, call, "image_embeddings")
        return repeated(embeds, call.subject.repeats)


@dataclass(frozen=True)
class SuperResolution(PixelFamily):
    """Two UNets that enlarge a small picture, the second in the last step."""

    first: UNet2DModel = component()
    last: UNet2DModel = component()
    scheduler: UnCLIPScheduler = component()

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return silent_subject(arguments) if "image" in arguments else read_subject(arguments)

    @property
    def default_size(self) -> tuple[int, int]:
        return sample_size(self.first)

    @property
    def latent_channels(self) -> int:
        return self.first.config.in_channels // 2

    @property
    def input_channels(self) -> int:
        return self.first.config.in_channels

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    @property
    def branches(self) -> tuple[str, ...]:
        return (COND,)

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return Unguided()

    def encode(self, call: Call) -> Conditions:
        return Nothing()

    def small(self, call: Call) -> torch.Tensor:
        """The picture that is enlarged, in [-1, 1]."""
        return call.arguments["small_image"]

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        unet = self.last if timestep == self.scheduler.timesteps[-1] else self.first
        return unet(latents, timestep, return_dict=False)[0]

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        return latents


@dataclass(frozen=True)
class UnCLIP(Components):
    """All components of text to image."""

    prior: PriorTransformer = component()
    decoder: UNet2DConditionModel = component()
    text_encoder: CLIPTextModelWithProjection = component()
    tokenizer: CLIPTokenizer = component()
    text_proj: UnCLIPTextProjModel = component()
    super_res_first: UNet2DModel = component()
    super_res_last: UNet2DModel = component()
    prior_scheduler: UnCLIPScheduler = component()
    decoder_scheduler: UnCLIPScheduler = component()
    super_res_scheduler: UnCLIPScheduler = component()


@dataclass(frozen=True)
class UnCLIPVariation(Components):
    """All components of variations of a picture."""

    decoder: UNet2DConditionModel = component()
    text_encoder: CLIPTextModelWithProjection = component()
    tokenizer: CLIPTokenizer = component()
    text_proj: UnCLIPTextProjModel = component()
    feature_extractor: CLIPImageProcessor = component()
    image_encoder: CLIPVisionModelWithProjection = component()
    super_res_first: UNet2DModel = component()
    super_res_last: UNet2DModel = component()
    decoder_scheduler: UnCLIPScheduler = component()
    super_res_scheduler: UnCLIPScheduler = component()
