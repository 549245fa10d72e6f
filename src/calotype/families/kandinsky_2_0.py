"""Kandinsky 2.0 (ai-forever/Kandinsky-2): a UNet that is told what two multilingual text encoders read.

It was published with three samplers. The default is DDIM, by the predicted mean alone: ``DDIMScheduler(**SAMPLING)``.
PLMS is ``PNDMScheduler`` with the same noise, offset and last step and ``skip_prk_steps=True``. The ancestral one reads
the learned variance and limits x̂0 by its 99.5th percentile: ``DDPMScheduler(**ANCESTRAL)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.diffusion.conditions import Conditions
from calotype.diffusion.family import component
from calotype.diffusion.guidance import COND, UNCOND, Guidance, classifier_free
from calotype.diffusion.inputs import Guide, Prompt
from calotype.diffusion.learned_variance import guiding_the_mean, without_variance
from calotype.families import clip_text
from calotype.families.kandinsky_2_1 import TOKENS, by_branch
from calotype.families.kandinsky_prior import prompts
from calotype.families.latent_unet import LatentFamily
from calotype.image_processor import VaeImageProcessor

if TYPE_CHECKING:
    from transformers import MT5EncoderModel, T5Tokenizer, XLMRobertaTokenizer

    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.kandinsky_v20_text_proj import KandinskyV20TextProjModel
    from calotype.models.multilingual_clip import MultilingualCLIP
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.schedulers.ddim import DDIMScheduler

NOISE: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
"""The noise that the model was trained with, as options of any scheduler."""

SAMPLING: dict[str, Any] = {**NOISE, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
"""The options of DDIM as published."""

ANCESTRAL: dict[str, Any] = {
    **NOISE,
    "variance_type": "learned_range",
    "clip_sample": False,
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1e6,
    "timestep_spacing": "linspace",
}
"""The options of DDPM as published."""


@dataclass(frozen=True)
class TwoTextsConditions(Conditions):
    """What the UNet takes: tokens to attend to, and an addition to the time; branches stacked."""

    encoder_hidden_states: torch.Tensor
    class_labels: torch.Tensor


@dataclass(frozen=True)
class KandinskyV20(LatentFamily):
    """The family bound to its components.

    ``inpaint_text_proj`` and ``inpaint_unet`` are those of the checkpoint for inpainting, where one object does all.
    """

    text_encoder: MultilingualCLIP = component()
    tokenizer: XLMRobertaTokenizer = component()
    text_encoder_2: MT5EncoderModel = component()
    tokenizer_2: T5Tokenizer = component()
    text_proj: KandinskyV20TextProjModel = component()
    unet: UNet2DConditionModel = component()
    scheduler: DDIMScheduler = component()
    vae: AutoencoderKL = component()
    inpaint_text_proj: KandinskyV20TextProjModel | None = component(None)
    inpaint_unet: UNet2DConditionModel | None = component(None)

    @property
    def multiple(self) -> int:
        """The UNet halves the sides of the latents, too."""
        return self.scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def picture_step(self) -> int:
        return self.multiple

    @property
    def image_processor(self) -> VaeImageProcessor:
        return VaeImageProcessor(
            vae_scale_factor=self.scale_factor,
            vae_latent_channels=self.latent_channels,
            resample="bicubic",
            reducing_gap=1,
            do_convert_rgb=True,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def branches(self) -> tuple[str, ...]:
        return COND, UNCOND

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return prompts(arguments)

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return guiding_the_mean(classifier_free(Guide.of(arguments).guidance_scale), self.scheduler)

    def encode(self, call: Call) -> TwoTextsConditions:
        for tokenizer in (self.tokenizer, self.tokenizer_2):
            clip_text.warn_of_cut(tokenizer, call.subject.texts, TOKENS)

        def read(texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
            first = clip_text.tokenize(self.tokenizer, texts, TOKENS).to(call.device)
            second = clip_text.tokenize(self.tokenizer_2, texts, TOKENS).to(call.device)
            pooled, states = self.text_encoder(first.input_ids, first.attention_mask)
            states_2 = self.text_encoder_2(second.input_ids, attention_mask=second.attention_mask)[0]
            return self.text_proj(states.to(self.dtype), pooled.to(self.dtype), states_2.to(self.dtype))

        return TwoTextsConditions(*by_branch(call, call.subject, read))

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        assert isinstance(conditions, TwoTextsConditions)
        told = conditions.tensors()
        prediction = self.unet(latents, timestep, return_dict=False, **told, **residuals.as_arguments())[0]
        return without_variance(prediction, self.latent_channels, self.scheduler)
