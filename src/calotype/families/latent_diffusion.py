"""Latent diffusion as first published (arXiv:2112.10752): its own text encoder, or a small picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import Conditions, Nothing
from calotype.diffusion.family import Family, component
from calotype.diffusion.guidance import COND, TOLD_THE_PROMPT, ClassifierFree, Guidance, Unguided
from calotype.diffusion.inputs import Batch, Guide, Original, Prompt
from calotype.families import clip_text
from calotype.families.guided_unet import sample_size, vae_scale_factor
from calotype.image_processor import VaeImageProcessor

if TYPE_CHECKING:
    from transformers import BertTokenizer

    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.ldm_bert import LDMBertModel
    from calotype.models.unet_2d import UNet2DModel
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.models.vq_model import VQModel
    from calotype.schedulers.scheduler import SchedulerMixin

TOKENS = 77
"""The tokens that the text encoder reads."""

SMALL_STEP = 32
"""What the sides of pictures to be enlarged are rounded down to."""


class LatentDiffusionFamily(Family):
    """A UNet on the latents of an autoencoder of either kind; abstract."""

    vqvae: VQModel | AutoencoderKL
    unet: Any

    @property
    def scale_factor(self) -> int:
        return vae_scale_factor(self.vqvae)

    @property
    def default_size(self) -> tuple[int, int]:
        height, width = sample_size(self.unet)
        return height * self.scale_factor, width * self.scale_factor

    @property
    def multiple(self) -> int:
        return self.scale_factor

    @property
    def latent_channels(self) -> int:
        return self.unet.config.out_channels

    @property
    def input_channels(self) -> int:
        return self.unet.config.in_channels

    def to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        raise InputError("Latent diffusion of this kind starts from noise alone.")


@dataclass(frozen=True)
class TextConditions(Conditions):
    """What the UNet attends to, with the branches stacked."""

    encoder_hidden_states: torch.Tensor


@dataclass(frozen=True)
class LatentDiffusion(LatentDiffusionFamily):
    """Text to image, bound to its components."""

    vqvae: VQModel | AutoencoderKL = component()
    bert: LDMBertModel = component()
    tokenizer: BertTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: SchedulerMixin = component()

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return Prompt.of(arguments)

    @property
    def dtype(self) -> torch.dtype:
        return self.bert.dtype

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        """Classifier-free guidance, also below 1, where it holds back."""
        scale = Guide.of(arguments).guidance_scale
        return Unguided() if scale == 1 else ClassifierFree(scale)

    def encode(self, call: Call) -> TextConditions:
        subject: Prompt = call.subject
        by_told = {True: subject.texts or (), False: subject.negative_texts}
        told = [name in TOLD_THE_PROMPT for name in call.guidance.branches]
        states = {prompt: self.states(by_told[prompt], call.device) for prompt in sorted(set(told))}
        return TextConditions(torch.cat([states[prompt] for prompt in told]))

    def states(self, texts: tuple[str, ...], device: torch.device) -> torch.Tensor:
        """What the text encoder makes of texts, (texts, tokens, channels)."""
        clip_text.warn_of_cut(self.tokenizer, texts, TOKENS)
        tokens = clip_text.tokenize(self.tokenizer, texts, TOKENS).to(device)
        return self.bert(tokens.input_ids)[0]

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        return self.unet(latents, timestep, return_dict=False, **conditions.tensors())[0]

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        return self.vqvae.decode(latents / self.vqvae.config.scaling_factor, return_dict=False)[0]


@dataclass(frozen=True)
class LatentSuperResolution(LatentDiffusionFamily):
    """Enlarging a picture, bound to its components; the latents are as large as the small picture."""

    vqvae: VQModel = component()
    unet: UNet2DModel = component()
    scheduler: SchedulerMixin = component()

    def subject(self, arguments: Mapping[str, Any]) -> Original:
        subject = Original.of(arguments)
        count = Batch.of(arguments).batch_size
        if count not in (1, subject.given):
            raise InputError(
                f"batch_size={count}, but the pictures to enlarge are {subject.given}; leave batch_size out."
            )
        return subject

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def branches(self) -> tuple[str, ...]:
        return (COND,)

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return Unguided()

    def encode(self, call: Call) -> Conditions:
        return Nothing()

    def small_size(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width of the pictures that are enlarged, as they are read."""
        image = Original.of(arguments).image
        if isinstance(image, torch.Tensor):
            return image.shape[-2], image.shape[-1]
        first = image[0] if isinstance(image, list | tuple) else image
        return first.height // SMALL_STEP * SMALL_STEP, first.width // SMALL_STEP * SMALL_STEP

    def small(self, call: Call) -> torch.Tensor:
        """The pictures that are enlarged, in [-1, 1]; tensors are taken as they are."""
        image = Original.of(call.arguments).image
        if isinstance(image, torch.Tensor):
            return image.to(call.device)
        processor = VaeImageProcessor(vae_scale_factor=SMALL_STEP, resample="lanczos", do_convert_rgb=True)
        return processor.preprocess(image).to(call.device)

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        return self.unet(latents, timestep, return_dict=False)[0]

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        return self.vqvae.decode(latents, return_dict=False)[0]
