"""Priors: a transformer that denoises the CLIP embedding of a picture, told a text (arXiv:2204.06125, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.family import Family, component
from calotype.diffusion.guidance import TOLD_THE_PROMPT, Guidance, classifier_free
from calotype.diffusion.inputs import Guide, Prompt, ReadText
from calotype.families import clip_text

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.prior_transformer import PriorTransformer
    from calotype.schedulers.scheduler import SchedulerMixin


@dataclass(frozen=True)
class TextOutput:
    """Texts as a CLIP text model with a projection reads them.

    ``embeds`` (n, channels) of the whole texts, ``states`` (n, tokens, channels) of their tokens, and ``mask``
    (n, tokens), which is True for the tokens that are no padding.
    """

    embeds: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor

    def repeated(self, times: int) -> TextOutput:
        """Each text ``times`` times in a row."""
        return TextOutput(*(repeated(part, times) for part in (self.embeds, self.states, self.mask)))


def read(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> TextOutput:
    """Texts through the encoder, on its device; what it does not read of them is named in a warning."""
    length = tokenizer.model_max_length
    clip_text.warn_of_cut(tokenizer, texts, length)
    tokens = clip_text.tokenize(tokenizer, texts, length).to(encoder.device)
    output = encoder(tokens.input_ids)
    return TextOutput(output.text_embeds, output.last_hidden_state, tokens.attention_mask.bool())


def read_by_branch(family: Any, call: Call, subject: Prompt) -> TextOutput:
    """What a call's branches are told, stacked: the prompt, given or read, or else the negative prompt.

    ``family`` has a ``text_encoder`` and a ``tokenizer``.
    """

    def branch(texts: Sequence[str]) -> TextOutput:
        return read(family.text_encoder, family.tokenizer, texts).repeated(subject.repeats)

    given = ReadText.of(call.arguments).output
    cond = branch(subject.texts or ()) if given is None else TextOutput(*given).repeated(subject.repeats)
    told = [name in TOLD_THE_PROMPT for name in call.guidance.branches]
    uncond = cond if all(told) else branch(subject.negative_texts)
    outputs = [cond if prompt else uncond for prompt in told]

    def stacked(part: Callable[[TextOutput], torch.Tensor]) -> torch.Tensor:
        return torch.cat([part(output).to(call.device) for output in outputs])

    return TextOutput(stacked(lambda o: o.embeds), stacked(lambda o: o.states), stacked(lambda o: o.mask))


def read_subject(arguments: Mapping[str, Any]) -> Prompt:
    """The prompt of a family that reads texts or takes what its text encoder gave for them."""
    given = ReadText.of(arguments)
    if given.output is not None and arguments.get("prompt") is not None:
        raise InputError(
            "Both prompt and text_model_output are given; they say the same, so give one of them."
        )
    embeds = None if given.output is None else given.output[0]
    if embeds is None and arguments.get("prompt") is None:
        raise InputError("prompt is not given, and this model has to read it as a text.")
    return Prompt.of({**arguments, "prompt_embeds": embeds, "negative_prompt_embeds": None})


@dataclass(frozen=True)
class PriorConditions(Conditions):
    """What the prior takes: texts as :class:`TextOutput` has them, with the branches stacked."""

    prompt_embeds: torch.Tensor
    text_encoder_hidden_states: torch.Tensor
    text_mask: torch.Tensor


class PriorFamily(Family):
    """A prior told a text; its latents are embeddings (pictures, channels).

    Abstract: a family states its components.
    """

    prior: PriorTransformer
    text_encoder: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return classifier_free(Guide.of(arguments).guidance_scale)

    def encode(self, call: Call) -> PriorConditions:
        text = read_by_branch(self, call, call.subject)
        return PriorConditions(text.embeds, text.states, text.mask)

    @property
    def default_size(self) -> tuple[int, int]:
        return 1, 1

    @property
    def multiple(self) -> int:
        return 1

    @property
    def scale_factor(self) -> int:
        return 1

    @property
    def latent_channels(self) -> int:
        return self.prior.config.embedding_dim

    @property
    def input_channels(self) -> int:
        return self.latent_channels

    def latent_shape(self, pictures: int, height: int, width: int) -> tuple[int, ...]:
        """One embedding a picture, whatever its size."""
        return pictures, self.latent_channels

    @property
    def dtype(self) -> torch.dtype:
        return self.text_encoder.dtype

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        assert isinstance(conditions, PriorConditions)
        return self.prior(
            latents,
            timestep,
            proj_embedding=conditions.prompt_embeds,
            encoder_hidden_states=conditions.text_encoder_hidden_states,
            attention_mask=conditions.text_mask,
            return_dict=False,
        )[0]

    def to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Embeddings are denoised as they are."""
        return pixels

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        """The embeddings as CLIP makes them, (pictures, channels)."""
        return self.prior.post_process_latents(latents)


@dataclass(frozen=True)
class Prior(PriorFamily):
    """The family bound to its components; without the prompt it is told the empty text."""

    prior: PriorTransformer = component()
    text_encoder: CLIPTextModelWithProjection = component()
    tokenizer: CLIPTokenizer = component()
    scheduler: SchedulerMixin = component()

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return read_subject({**arguments, "negative_prompt": None})
