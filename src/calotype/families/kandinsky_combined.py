"""Kandinsky 2's decoders behind a prior that is sampled first: texts to pictures in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calotype.diffusion.family import Components, component
from calotype.diffusion.inputs import Embedded, Prompt
from calotype.families.kandinsky_2_1 import Kandinsky21Family
from calotype.families.kandinsky_2_2 import Kandinsky22Family
from calotype.families.kandinsky_prior import in_pairs, prompts

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
        XLMRobertaTokenizer,
    )

    from calotype.diffusion.call import Call
    from calotype.models.multilingual_clip import MultilingualCLIP
    from calotype.models.prior_transformer import PriorTransformer
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.models.vq_model import VQModel
    from calotype.schedulers.ddim import DDIMScheduler
    from calotype.schedulers.ddpm import DDPMScheduler, UnCLIPScheduler


def one_each(arguments: Mapping[str, Any]) -> Prompt:
    """A prompt for each picture: the prior makes so many embeddings, and each becomes one picture.

    What to steer away from is in the embeddings; the decoder is told no negative prompt.
    """
    subject = prompts(arguments)
    return Prompt([text for text in subject.texts or () for _ in range(subject.repeats)])


def imagined(call: Call, encoder: Any) -> Embedded:
    """The embeddings that the prior gave, in pairs."""
    embeds, negative = in_pairs(call.arguments["image_embeds"], call.arguments, encoder)
    return Embedded(embeds, negative)


@dataclass(frozen=True)
class ImaginedKandinsky22(Kandinsky22Family):
    """The decoder of Kandinsky 2.2, and of its prior what embeds nothing."""

    unet: UNet2DConditionModel = component()
    scheduler: DDPMScheduler = component()
    movq: VQModel = component()
    prior_image_encoder: CLIPVisionModelWithProjection = component()

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        self.check_hint(arguments, prompts(arguments).prompts, "prompts")
        return one_each(arguments)

    def embedded(self, call: Call) -> Embedded:
        return imagined(call, self.prior_image_encoder)


@dataclass(frozen=True)
class ImaginedKandinsky21(Kandinsky21Family):
    """The decoder of Kandinsky 2.1, and of its prior what embeds nothing."""

    text_encoder: MultilingualCLIP = component()
    tokenizer: XLMRobertaTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: DDIMScheduler = component()
    movq: VQModel = component()
    prior_image_encoder: CLIPVisionModelWithProjection = component()

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return one_each(arguments)

    def embedded(self, call: Call) -> Embedded:
        return imagined(call, self.prior_image_encoder)


@dataclass(frozen=True)
class CombinedKandinsky22(Components):
    """All components of prior and decoder."""

    unet: UNet2DConditionModel = component()
    scheduler: DDPMScheduler = component()
    movq: VQModel = component()
    prior_prior: PriorTransformer = component()
    prior_image_encoder: CLIPVisionModelWithProjection = component()
    prior_text_encoder: CLIPTextModelWithProjection = component()
    prior_tokenizer: CLIPTokenizer = component()
    prior_scheduler: UnCLIPScheduler = component()
    prior_image_processor: CLIPImageProcessor = component()


@dataclass(frozen=True)
class CombinedKandinsky21(Components):
    """All components of prior and decoder."""

    text_encoder: MultilingualCLIP = component()
    tokenizer: XLMRobertaTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: DDIMScheduler = component()
    movq: VQModel = component()
    prior_prior: PriorTransformer = component()
    prior_image_encoder: CLIPVisionModelWithProjection = component()
    prior_text_encoder: CLIPTextModelWithProjection = component()
    prior_tokenizer: CLIPTokenizer = component()
    prior_scheduler: UnCLIPScheduler = component()
    prior_image_processor: CLIPImageProcessor = component()
