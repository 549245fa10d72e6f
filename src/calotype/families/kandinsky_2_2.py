"""Kandinsky 2.2: a UNet on MoVQ's latents that is told a picture's embedding, and a hint where it takes one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.family import component
from calotype.diffusion.guidance import TOLD_THE_PROMPT
from calotype.diffusion.inputs import Embedded, Hinted
from calotype.diffusion.inputs.embeds import joined
from calotype.families.movq import MoVQFamily
from calotype.image_processor import VaeImageProcessor

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.models.vq_model import VQModel
    from calotype.schedulers.ddpm import DDPMScheduler


@dataclass(frozen=True)
class EmbeddedConditions(Conditions):
    """What the UNet takes: the pictures' embeddings and the hints, both with the branches stacked."""

    image_embeds: torch.Tensor
    negative_image_embeds: torch.Tensor | None = None
    hint: torch.Tensor | None = None


class Kandinsky22Family(MoVQFamily):
    """A UNet told embeddings; abstract: a family states its components and where the embeddings come from."""

    tensor_names: ClassVar[tuple[str, ...]] = ("latents", "image_embeds", "negative_image_embeds")

    @abstractmethod
    def embedded(self, call: Call) -> Embedded:
        """The embeddings of what to show, and of what to steer away from."""

    @property
    def input_channels(self) -> int:
        # the UNet puts what it makes of a hint beside the latents by itself
        return super().input_channels - (self.latent_channels if self.reads_hint else 0)

    @property
    def reads_hint(self) -> bool:
        return self.unet.config.addition_embed_type == "image_hint"

    def encode(self, call: Call) -> EmbeddedConditions:
        embedded = self.embedded(call)
        embeds, negative = stacked_embeds(call, embedded, self.dtype)
        return EmbeddedConditions(embeds, negative, self.hint(call) if self.reads_hint else None)

    def hint(self, call: Call) -> torch.Tensor:
        """The control pictures in the size of the latents' pictures, with the branches stacked."""
        height, width = (side * self.scale_factor for side in call.latent_shape[-2:])
        processor = VaeImageProcessor(do_normalize=False, do_convert_rgb=True)
        hint = Hinted.of(call.arguments).pixels(processor, height, width).to(call.device, self.dtype)
        return repeated(hint, call.pictures // len(hint)).repeat(len(call.guidance.branches), 1, 1, 1)

    def check_hint(self, arguments: Mapping[str, Any], count: int, what: str) -> None:
        """Refuse a control picture that the UNet does not read, or its lack; ``count`` says what there is one for."""
        reads = self.reads_hint
        if ("hint" in arguments) != reads:
            raise InputError(
                f"This UNet reads {'a' if reads else 'no'} hint (its addition_embed_type is "
                f"{self.unet.config.addition_embed_type!r}); use the pipeline with{'' if reads else 'out'} ControlNet."
            )
        if reads:
            Hinted.of(arguments).check(count, what)

    def reads(self, conditions: Conditions) -> dict[str, Any]:
        assert isinstance(conditions, EmbeddedConditions)
        told = {"image_embeds": conditions.image_embeds, "hint": conditions.hint}
        told = {name: value for name, value in told.items() if value is not None}
        return {"encoder_hidden_states": None, "added_cond_kwargs": told}


@dataclass(frozen=True)
class Kandinsky22(Kandinsky22Family):
    """The family bound to its components."""

    unet: UNet2DConditionModel = component()
    scheduler: DDPMScheduler = component()
    movq: VQModel = component()

    def subject(self, arguments: Mapping[str, Any]) -> Embedded:
        subject = Embedded.of(arguments)
        check_negative(subject, "uncond" in self.guidance(arguments).branches)
        self.check_hint(arguments, subject.embeddings, "embeddings")
        return subject

    def embedded(self, call: Call) -> Embedded:
        return call.subject


def check_negative(subject: Embedded, guided: bool) -> None:
    """Refuse guidance without the embeddings of what to steer away from."""
    if guided and subject.negative_image_embeds is None:
        raise InputError(
            "guidance_scale is above 1, so negative_image_embeds is needed beside image_embeds; the prior makes both."
        )


def stacked_embeds(
    call: Call, subject: Embedded, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The embeddings with a row for each picture and branch, and the negative ones with a row for each picture."""
    repeats, branches = subject.repeats, call.guidance.branches
    cond = repeated(joined(subject.image_embeds).to(call.device, dtype), repeats)
    negative = None
    if subject.negative_image_embeds is not None:
        negative = repeated(joined(subject.negative_image_embeds).to(call.device, dtype), repeats)
    parts = [cond if name in TOLD_THE_PROMPT or negative is None else negative for name in branches]
    return torch.cat(parts), negative
