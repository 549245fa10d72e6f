"""Kandinsky 2.1 (arXiv:2310.03502): a UNet on MoVQ's latents that is told a text and the embedding of a picture."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.family import component
from calotype.diffusion.guidance import TOLD_THE_PROMPT
from calotype.diffusion.inputs import Embedded, Picture, Prompt
from calotype.diffusion.tasks.task import Path
from calotype.families import clip_text
from calotype.families.kandinsky_2_2 import check_negative, stacked_embeds
from calotype.families.kandinsky_prior import prompts
from calotype.families.movq import MoVQFamily

if TYPE_CHECKING:
    from transformers import XLMRobertaTokenizer

    from calotype.diffusion.call import Call
    from calotype.models.multilingual_clip import MultilingualCLIP
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.models.vq_model import VQModel
    from calotype.schedulers.ddim import DDIMScheduler

TOKENS = 77
"""How many tokens the text encoder is given, whatever its tokenizer could do."""

NOISING_BETAS = (0.0001, 0.02)
"""The linear schedule of β by which pictures are noised, another one than that of sampling."""


def by_branch(
    call: Call, subject: Prompt, read: Callable[[Sequence[str]], tuple[torch.Tensor, ...]]
) -> tuple[torch.Tensor, ...]:
    """What ``read`` makes of the texts of all branches, stacked, a row for each picture; equal texts are read once."""
    assert subject.texts is not None
    by_texts: dict[Sequence[str], tuple[torch.Tensor, ...]] = {}
    order = []
    for name in call.guidance.branches:
        texts = subject.texts if name in TOLD_THE_PROMPT else subject.negative_texts
        if texts not in by_texts:
            by_texts[texts] = read(texts)
        order.append(by_texts[texts])
    return tuple(
        torch.cat([repeated(part, subject.repeats) for part in parts]) for parts in zip(*order, strict=True)
    )


@dataclass(frozen=True)
class TextImageConditions(Conditions):
    """What the UNet takes: texts, their tokens' states and the pictures' embeddings, all with the branches stacked."""

    text_embeds: torch.Tensor
    text_encoder_hidden_states: torch.Tensor
    image_embeds: torch.Tensor


class Kandinsky21Family(MoVQFamily):
    """A UNet told texts and embeddings; abstract: a family states its components and where the embeddings come from."""

    text_encoder: MultilingualCLIP
    tokenizer: XLMRobertaTokenizer

    @abstractmethod
    def embedded(self, call: Call) -> Embedded:
        """The embeddings of what to show, and of what to steer away from, one for each prompt."""

    def encode(self, call: Call) -> TextImageConditions:
        embeds, _ = stacked_embeds(call, self.embedded(call), self.dtype)
        texts, states = self.read(call, call.subject)
        return TextImageConditions(texts, states, embeds)

    def read(self, call: Call, subject: Prompt) -> tuple[torch.Tensor, ...]:
        """Vectors and tokens' states of the prompts or negative prompts of all branches, a row for each picture."""
        clip_text.warn_of_cut(self.tokenizer, subject.texts or (), TOKENS)

        def read(texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
            tokens = clip_text.tokenize(self.tokenizer, texts, TOKENS).to(call.device)
            return self.text_encoder(tokens.input_ids, tokens.attention_mask)

        return tuple(part.to(self.dtype) for part in by_branch(call, subject, read))

    def reads(self, conditions: Conditions) -> dict[str, Any]:
        assert isinstance(conditions, TextImageConditions)
        return {
            "encoder_hidden_states": conditions.text_encoder_hidden_states,
            "added_cond_kwargs": {
                "text_embeds": conditions.text_embeds,
                "image_embeds": conditions.image_embeds,
            },
        }


@dataclass(frozen=True)
class Kandinsky21(Kandinsky21Family):
    """The family bound to its components."""

    text_encoder: MultilingualCLIP = component()
    tokenizer: XLMRobertaTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: DDIMScheduler = component()
    movq: VQModel = component()

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        """The prompts, of which each has its embedding."""
        subject, embedded = prompts(arguments), Embedded.of(arguments)
        check_negative(embedded, "uncond" in self.guidance(arguments).branches)
        if embedded.embeddings != subject.prompts:
            raise InputError(
                f"There are {embedded.embeddings} image_embeds for {subject.prompts} prompts; give one for each."
            )
        return subject

    def embedded(self, call: Call) -> Embedded:
        return Embedded.of(call.arguments)


def noised_by_strength(call: Call, path: Path, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A picture's latents at the noise level, in a schedule of their own, that ``strength`` names."""
    betas = torch.linspace(*NOISING_BETAS, 1000)
    share = Picture.of(call.arguments).strength
    step = max(int(call.scheduler.config.num_train_timesteps * share) - 2, 0)
    signal = float(torch.cumprod(1 - betas, dim=0)[step])
    return signal**0.5 * latents + (1 - signal) ** 0.5 * noise
