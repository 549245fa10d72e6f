"""AnimateDiff (arXiv:2307.04725): Stable Diffusion that moves, with motion modules between the layers of its UNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.family import component, option, setting
from calotype.diffusion.free_init import FreeInit
from calotype.diffusion.free_noise import FreeNoise
from calotype.diffusion.inputs import Prompt, TwoPrompts, told_by_frame
from calotype.diffusion.rounds import Once, Rounds
from calotype.families.latent_unet import LatentFamily, UNetConditions
from calotype.families.perturbed import PerturbedFamily
from calotype.families.stable_diffusion import StableDiffusionFamily
from calotype.families.stable_diffusion_xl import StableDiffusionXL
from calotype.models.unet_2d_condition import UNet2DConditionModel
from calotype.models.unet_motion_model import UNetMotionModel

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
    )

    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.controlnet import ControlNetModel
    from calotype.models.motion_adapter import MotionAdapter
    from calotype.models.multicontrolnet import MultiControlNetModel
    from calotype.models.sparse_controlnet import SparseControlNetModel
    from calotype.schedulers.scheduler import SchedulerMixin


class MovingFamily(LatentFamily):
    """A UNet over pictures that a motion adapter makes one over videos; abstract.

    Its latents are (videos, channels, frames, height, width).
    """

    motion_adapter: MotionAdapter
    free_init: FreeInit | None

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A UNet over pictures becomes one over videos, with the adapter's motion."""
        values = super().prepared(values)
        unet, adapter = values["unet"], values["motion_adapter"]
        if not isinstance(unet, UNet2DConditionModel):
            return values
        if adapter is None:
            raise InputError(
                "The UNet is for pictures; pass motion_adapter=MotionAdapter.from_pretrained(…), without which nothing "
                "moves."
            )
        return {**values, "unet": UNetMotionModel.from_unet2d(unet, adapter)}

    @property
    def rounds(self) -> Rounds:
        return self.free_init or Once()


class AnimateDiffFamily(MovingFamily, StableDiffusionFamily):
    """Stable Diffusion 1.x and 2.x that moves; abstract."""

    free_noise: FreeNoise | None

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        """The prompt; of prompts by frame the first."""
        first = {}
        for name in ("prompt", "negative_prompt"):
            if isinstance(texts := arguments.get(name), dict):
                first[name] = told_by_frame(name, texts, _beyond(texts))[0]
        count = arguments.get("num_videos_per_prompt", 1)
        return Prompt.of({**arguments, **first, "num_images_per_prompt": count})

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Refuse prompts by frame without FreeNoise, and beside a batch of others."""
        super().check(arguments)
        given = {name: arguments.get(name) for name in ("prompt", "negative_prompt")}
        for name, texts in given.items():
            if isinstance(texts, dict) and self.free_noise is None:
                raise InputError(
                    f"{name} has texts by frame, which needs FreeNoise; call enable_free_noise first."
                )
        if isinstance(given["negative_prompt"], dict) and not isinstance(given["prompt"], str | dict):
            raise InputError(
                "negative_prompt has texts by frame, so prompt must be a text or texts by frame, too."
            )

    def encode(self, call: Call) -> UNetConditions:
        """What the prompts say; with FreeNoise one prompt says it frame by frame."""
        prompt, negative = (call.arguments.get(name) for name in ("prompt", "negative_prompt"))
        if self.free_noise is None or not isinstance(prompt, str | dict):
            return super().encode(call)
        alone = negative if isinstance(negative, str | dict | None) else negative[0]
        return self.conditions(call, *self._by_frame(call, prompt, alone))

    def _by_frame(
        self, call: Call, prompt: str | dict[int, str], negative: str | dict[int, str] | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings of both prompts as (videos, frames, tokens, channels); None where nothing is steered away from."""
        assert self.free_noise is not None
        assert call.frames is not None
        free, frames, subject = self.free_noise, call.frames, call.subject
        told = told_by_frame("prompt", prompt, frames)
        away = told_by_frame("negative_prompt", negative or "", frames)
        given = subject.negative_prompt_embeds
        guided = "uncond" in call.guidance.branches and given is None
        # read together, so that both get as many chunks of tokens as the longest text needs
        count = max(len(told), len(away))
        texts, others = ([*one.values(), *[one[frames - 1]] * (count - len(one))] for one in (told, away))
        read = replace(
            subject,
            prompt=texts,
            negative_prompt=others if guided else None,
            negative_prompt_embeds=None,
            num_images_per_prompt=1,
        )
        cond, uncond = self.embed(read, guided, call.device)

        def spread(texts: dict[int, str], embeds: torch.Tensor) -> torch.Tensor:
            found = free.between(dict(zip(texts, embeds, strict=False)), frames)
            return repeated(found[None], subject.repeats)

        if uncond is not None:
            return spread(told, cond), spread(away, uncond)
        if given is not None:
            given = repeated(given.to(call.device, self.text_dtype)[:, None], subject.repeats)
            given = given.expand(-1, frames, -1, -1)
        return spread(told, cond), given

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        if self.free_noise is not None:
            assert isinstance(conditions, UNetConditions)
            more = {**(conditions.cross_attention_kwargs or {}), "windows": self.free_noise.windows}
            conditions = replace(conditions, cross_attention_kwargs=more)
        return super().predict(latents, timestep, conditions, residuals)


def _beyond(texts: dict[Any, str]) -> int:
    """More frames than any number among the keys."""
    return max((frame for frame in texts if isinstance(frame, int)), default=0) + 1


@dataclass(frozen=True)
class AnimateDiff(AnimateDiffFamily):
    """The family bound to its components."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    unet: UNet2DConditionModel | UNetMotionModel = component()  # type: ignore[assignment]
    motion_adapter: MotionAdapter = component()
    scheduler: SchedulerMixin = component()
    feature_extractor: CLIPImageProcessor | None = component(None)
    image_encoder: CLIPVisionModelWithProjection | None = component(None)
    free_init: FreeInit | None = setting(None)
    free_noise: FreeNoise | None = setting(None)


@dataclass(frozen=True)
class AnimateDiffWithControlNet(AnimateDiff):
    """The family with one or several ControlNets that read a picture for each frame."""

    controlnet: ControlNetModel | MultiControlNetModel = component(None)


@dataclass(frozen=True)
class AnimateDiffWithSparseControlNet(AnimateDiff):
    """The family with a ControlNet that reads pictures for some frames."""

    controlnet: SparseControlNetModel = component(None)


@dataclass(frozen=True)
class AnimateDiffPAG(PerturbedFamily, AnimateDiff):
    """The family with perturbed-attention guidance."""

    pag_applied_layers: str | list[str] = setting("mid_block.*attn1")


@dataclass(frozen=True)
class AnimateDiffXL(MovingFamily, StableDiffusionXL):
    """Stable Diffusion XL that moves, bound to its components."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    text_encoder_2: CLIPTextModelWithProjection = component()
    tokenizer: CLIPTokenizer = component()
    tokenizer_2: CLIPTokenizer = component()
    unet: UNet2DConditionModel | UNetMotionModel = component()  # type: ignore[assignment]
    scheduler: SchedulerMixin = component()
    add_watermarker: bool | None = option(False)
    motion_adapter: MotionAdapter = component(None)
    free_init: FreeInit | None = setting(None)

    def subject(self, arguments: Mapping[str, Any]) -> TwoPrompts:
        return TwoPrompts.of(
            {**arguments, "num_images_per_prompt": arguments.get("num_videos_per_prompt", 1)}
        )
