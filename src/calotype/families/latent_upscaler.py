"""The upscaler of latents: a UNet in Karras' preconditioning that reads the smaller latents beside the noisy ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.diffusion.conditions import Conditions
from calotype.diffusion.family import component
from calotype.diffusion.guidance import Guidance, classifier_free
from calotype.diffusion.inputs import Guide, TwoPrompts
from calotype.families import clip_text
from calotype.families.latent_unet import LatentFamily

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.schedulers.euler import EulerDiscreteScheduler

NOISE_CHANNELS = 64
"""Half the width of the embedding of the smaller latents' noise level."""


@dataclass(frozen=True)
class UpscalerConditions(Conditions):
    """What the UNet takes: text (branches·batch, tokens, channels), and the pooled text after the noise's level."""

    prompt_embeds: torch.Tensor
    timestep_cond: torch.Tensor


@dataclass(frozen=True)
class LatentUpscaler(LatentFamily):
    """The family bound to its components."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: EulerDiscreteScheduler = component()

    beside: ClassVar[tuple[str, ...]] = (*LatentFamily.beside, "prompt_chunks", "prompt_weighting")

    def subject(self, arguments: Mapping[str, Any]) -> TwoPrompts:
        return TwoPrompts.of(arguments)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype if self.text_encoder is None else self.text_encoder.dtype

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return classifier_free(Guide.of(arguments).guidance_scale)

    def encode(self, call: Call) -> UpscalerConditions:
        """The text's states, and its pooled form after the embedding of noise level zero."""
        subject: TwoPrompts = call.subject
        cond, pooled = subject.prompt_embeds, subject.pooled_prompt_embeds
        uncond = subject.negative_prompt_embeds, subject.negative_pooled_prompt_embeds
        ignored = Guide.of(call.arguments).guidance_scale == 0
        texts = ("",) * subject.prompts if ignored else subject.texts
        guided = "uncond" in call.guidance.branches
        negatives = subject.negative_texts if guided and uncond[0] is None else ()
        laid = clip_text.layout(
            subject, clip_text.Reading(self.tokenizer, self.text_encoder, (*(texts or ()), *negatives))
        )
        if subject.texts is not None:
            assert texts is not None
            if laid is None:
                clip_text.warn_of_cut(
                    self.tokenizer, texts, self.tokenizer.model_max_length, clip_text.CHUNKS
                )
            cond, pooled = clip_text.encode_pooled(self.text_encoder, self.tokenizer, texts, laid)
        if negatives:
            uncond = clip_text.encode_pooled(self.text_encoder, self.tokenizer, negatives, laid)
        by_branch: dict[str, Any] = {"cond": (cond, pooled), "uncond": uncond}
        states, summaries = (
            torch.cat([by_branch[name][part] for name in call.guidance.branches]).to(call.device, self.dtype)
            for part in range(2)
        )
        level = summaries.new_tensor([1.0, 0.0]).repeat_interleave(NOISE_CHANNELS)  # cos and sin of zero
        told = torch.cat([level.expand(len(summaries), -1), summaries], dim=1)
        return UpscalerConditions(prompt_embeds=states, timestep_cond=told)

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        """D(x; σ) = c_skip·x + c_out·F(c_in·x; ln(σ)/4) with σ_data = 1 (arXiv:2206.00364, table 1)."""
        assert isinstance(conditions, UpscalerConditions)
        sigma = self.scheduler.sigmas[self.scheduler.index_for_timestep(timestep)].to(latents.device)
        raw = self.unet(
            latents,
            sigma.log() * 0.25,
            encoder_hidden_states=conditions.prompt_embeds,
            timestep_cond=conditions.timestep_cond,
            return_dict=False,
            **residuals.as_arguments(),
        )[0][:, : self.latent_channels]
        scaled = latents[:, : self.latent_channels]  # c_in·x, as the scheduler scales it
        return ((scaled + sigma * raw) / (sigma**2 + 1).sqrt()).to(latents.dtype)
