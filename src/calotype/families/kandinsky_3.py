"""Kandinsky 3 (arXiv:2312.03511): a large U-Net on MoVQ's latents that is told the states of a T5 encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.family import component
from calotype.diffusion.guidance import TOLD_THE_PROMPT, UNCOND, ClassifierFree, Guidance, Unguided
from calotype.diffusion.inputs import Guide, Prompt, TextMasks
from calotype.diffusion.learned_variance import guiding_the_mean
from calotype.families import clip_text
from calotype.families.movq import MoVQFamily

if TYPE_CHECKING:
    from transformers import T5EncoderModel, T5Tokenizer

    from calotype.diffusion.call import Call
    from calotype.models.kandinsky3_unet import Kandinsky3UNet
    from calotype.models.vq_model import VQModel
    from calotype.schedulers.ddpm import DDPMScheduler

TOKENS = 128
"""How many tokens the text encoder is given."""


@dataclass(frozen=True)
class MaskedText:
    """States of tokens (batch, tokens, channels), zero where the mask (batch, tokens) is."""

    states: torch.Tensor
    mask: torch.Tensor

    def cut(self, length: int) -> MaskedText:
        """The first tokens alone."""
        return MaskedText(self.states[:, :length], self.mask[:, :length])

    def repeated(self, times: int) -> MaskedText:
        """Each text ``times`` times in a row."""
        return MaskedText(repeated(self.states, times), repeated(self.mask, times))


@dataclass(frozen=True)
class MaskedConditions(Conditions):
    """What the UNet takes, with the branches stacked, and what the negative branch has of it."""

    prompt_embeds: torch.Tensor
    attention_mask: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None = None
    negative_attention_mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Kandinsky3(MoVQFamily):
    """The family bound to its components."""

    tokenizer: T5Tokenizer = component()
    text_encoder: T5EncoderModel = component()
    unet: Kandinsky3UNet = component()
    scheduler: DDPMScheduler = component()
    movq: VQModel = component()

    tensor_names: ClassVar[tuple[str, ...]] = (
        "latents", "prompt_embeds", "negative_prompt_embeds", "negative_attention_mask", "attention_mask",
    )  # fmt: skip

    @property
    def picture_step(self) -> int:
        return (
            self.scale_factor**2
        )  # the U-Net divides the latents' sides as often as the autoencoder the picture's

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        subject = Prompt.of(arguments)
        TextMasks.of(arguments).check(subject)
        return subject

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        """Classifier-free guidance whose scale is counted from the prompt's prediction: 0 is none."""
        scale = Guide.of(arguments).guidance_scale
        guided: Guidance = ClassifierFree(scale + 1) if scale > 1 else Unguided()
        return guiding_the_mean(guided, self.scheduler)

    def encode(self, call: Call) -> MaskedConditions:
        branches = call.guidance.branches
        cond, uncond = self.embed(call.subject, TextMasks.of(call.arguments), UNCOND in branches, call.device)
        parts = [cond if name in TOLD_THE_PROMPT or uncond is None else uncond for name in branches]
        return MaskedConditions(
            torch.cat([part.states for part in parts]),
            torch.cat([part.mask for part in parts]),
            None if uncond is None else uncond.states,
            None if uncond is None else uncond.mask,
        )

    def embed(
        self, subject: Prompt, masks: TextMasks, guided: bool, device: torch.device, cut: bool = True
    ) -> tuple[MaskedText, MaskedText | None]:
        """Prompt and negative prompt, a row for each picture; the latter None where there is no guidance.

        ``cut`` leaves out what is padding in all prompts. Where there is no negative prompt its states are zero and no
        token is seen.
        """
        if subject.texts is not None:
            clip_text.warn_of_cut(self.tokenizer, subject.texts, TOKENS)
            cond = self.read(subject.texts, device)
            if cut:
                cond = cond.cut(int(cond.mask.sum(dim=1).max()) + 1)
        else:
            assert subject.prompt_embeds is not None and masks.attention_mask is not None
            cond = MaskedText(subject.prompt_embeds.to(device), masks.attention_mask.to(device))
        uncond = None
        if guided and subject.negative_prompt_embeds is not None:
            assert masks.negative_attention_mask is not None
            uncond = MaskedText(
                subject.negative_prompt_embeds.to(device), masks.negative_attention_mask.to(device)
            )
        elif guided and subject.negative_prompt is not None:
            uncond = self.read(subject.negative_texts, device).cut(cond.states.shape[1])
        elif guided:
            uncond = MaskedText(torch.zeros_like(cond.states), torch.zeros_like(cond.mask))
        if uncond is not None and uncond.states.shape != cond.states.shape:
            raise InputError(
                f"The negative prompt's embeddings have the shape {tuple(uncond.states.shape)} and the prompt's "
                f"{tuple(cond.states.shape)}; they must be equal."
            )
        return cond.repeated(subject.repeats), None if uncond is None else uncond.repeated(subject.repeats)

    def read(self, texts: Sequence[str], device: torch.device) -> MaskedText:
        """Texts through the encoder; what it says of padding is put to zero."""
        if self.text_encoder is None:
            raise InputError(
                "Without a text encoder, give prompt_embeds and attention_mask, and their negatives."
            )
        tokens = clip_text.tokenize(self.tokenizer, texts, TOKENS).to(device)
        states = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        states = states.to(self.dtype)
        return MaskedText(states * tokens.attention_mask[:, :, None].to(states), tokens.attention_mask)

    def reads(self, conditions: Conditions) -> dict[str, Any]:
        assert isinstance(conditions, MaskedConditions)
        return {
            "encoder_hidden_states": conditions.prompt_embeds,
            "encoder_attention_mask": conditions.attention_mask,
        }
