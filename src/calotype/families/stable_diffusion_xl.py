"""Stable Diffusion XL (arXiv:2307.01952): two text encoders, and a denoiser that is told about size and crop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from calotype.core.errors import InputError
from calotype.core.transfer import sent
from calotype.diffusion import codec
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.family import component, option
from calotype.diffusion.guidance import TOLD_THE_PROMPT, Guidance
from calotype.diffusion.inputs import MicroConditions, TwoPrompts
from calotype.families import clip_text, image_prompt, watermark
from calotype.families.guided_unet import embedded_scale, unet_branches, unet_guidance
from calotype.families.latent_unet import LatentFamily

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
    from calotype.models.controlnet_union import ControlNetUnionModel
    from calotype.models.multicontrolnet import MultiControlNetModel
    from calotype.models.multicontrolnet_union import MultiControlNetUnionModel
    from calotype.models.t2i_adapter import MultiAdapter, T2IAdapter
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.schedulers.scheduler import SchedulerMixin


@dataclass(frozen=True)
class XLConditions(Conditions):
    """What the denoiser takes: text, pooled text (branches·batch, channels) and the numbers of size and crop."""

    prompt_embeds: torch.Tensor
    add_text_embeds: torch.Tensor
    add_time_ids: torch.Tensor
    timestep_cond: torch.Tensor | None = None
    cross_attention_kwargs: dict[str, Any] | None = None


class Embedded(NamedTuple):
    """Prompt and negative prompt, whole (pictures, tokens, channels) and pooled (pictures, channels)."""

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None
    pooled_prompt_embeds: torch.Tensor
    negative_pooled_prompt_embeds: torch.Tensor | None


@dataclass(frozen=True)
class StableDiffusionXL(LatentFamily):
    """The family bound to its components; the refiner has the second text encoder alone and is told a score."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    text_encoder_2: CLIPTextModelWithProjection = component()
    tokenizer: CLIPTokenizer = component()
    tokenizer_2: CLIPTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: SchedulerMixin = component()
    image_encoder: CLIPVisionModelWithProjection | None = component(None)
    feature_extractor: CLIPImageProcessor | None = component(None)
    requires_aesthetics_score: bool = option(False)
    force_zeros_for_empty_prompt: bool = option(True)
    add_watermarker: bool | None = option(None)

    tensor_names: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")
    beside: ClassVar[tuple[str, ...]] = (
        *LatentFamily.beside, "prompt_chunks", "prompt_weighting", "ip_adapter_scale",
    )  # fmt: skip
    negative_sizes_as_pair: ClassVar[bool] = True
    """Whether the negative sizes count only if both are given, or each by itself."""

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse a watermark without the package that makes it."""
        watermark.check(values.get("add_watermarker"))
        return values

    def subject(self, arguments: Mapping[str, Any]) -> TwoPrompts:
        return TwoPrompts.of(arguments)

    @property
    def dtype(self) -> torch.dtype:
        """The type that embeddings and latents are handed on in."""
        return self.unet.dtype if self.text_encoder_2 is None else self.text_encoder_2.dtype

    @property
    def branches(self) -> tuple[str, ...]:
        return unet_branches(self.unet)

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return unet_guidance(self.unet, arguments)

    def check(self, arguments: Mapping[str, Any]) -> None:
        image_prompt.check(self, arguments)

    def encode(self, call: Call) -> XLConditions:
        branches = call.guidance.branches
        guided = "uncond" in branches
        text = self.embed(call.subject, guided, call.device)
        told = MicroConditions.of(call.arguments)
        size = (call.height, call.width)
        original, target = told.original_size or size, told.target_size or size
        cond = self.time_ids(original, told.crops_coords_top_left, target, told.aesthetic_score, text)
        uncond = self._negative_time_ids(told, original, target, text) if guided else cond
        ids = [cond if name in TOLD_THE_PROMPT else uncond for name in branches]
        rows = torch.tensor(ids, dtype=text.prompt_embeds.dtype)
        return XLConditions(
            prompt_embeds=_stacked(branches, text.prompt_embeds, text.negative_prompt_embeds),
            add_text_embeds=_stacked(branches, text.pooled_prompt_embeds, text.negative_pooled_prompt_embeds),
            add_time_ids=repeated(sent(rows, call.device), call.pictures),
            timestep_cond=embedded_scale(self.unet, call),
            cross_attention_kwargs=image_prompt.attention_arguments(self, call),
        )

    def time_ids(
        self,
        original: Sequence[int],
        corner: Sequence[int],
        target: Sequence[int],
        score: float,
        text: Embedded,
    ) -> list[float]:
        """The numbers that the denoiser is told; ``InputError`` if it was made for another count of them."""
        numbers = [*original, *corner, *((score,) if self.requires_aesthetics_score else target)]
        pooled = text.pooled_prompt_embeds.shape[-1]
        made = self.unet.config.addition_time_embed_dim * len(numbers) + pooled
        wanted = self.unet.config.projection_class_embeddings_input_dim
        if made != wanted:
            raise InputError(
                f"The denoiser takes {wanted} numbers beside the text and would get {made}; set "
                f"requires_aesthetics_score={not self.requires_aesthetics_score} with pipe.register_to_config, or "
                f"check that its configuration and text_encoder_2 belong together."
            )
        return [float(number) for number in numbers]

    def _negative_time_ids(
        self, told: MicroConditions, original: Sequence[int], target: Sequence[int], text: Embedded
    ) -> list[float]:
        negative_original, negative_target = told.negative_original_size, told.negative_target_size
        if self.negative_sizes_as_pair:
            if negative_original is None or negative_target is None:
                return self.time_ids(original, told.crops_coords_top_left, target, told.aesthetic_score, text)
            corner = told.negative_crops_coords_top_left
        else:
            corner = (
                told.negative_crops_coords_top_left
                if self.requires_aesthetics_score
                else told.crops_coords_top_left
            )
        return self.time_ids(
            negative_original or original,
            corner,
            negative_target or target,
            told.negative_aesthetic_score,
            text,
        )

    def embed(self, subject: TwoPrompts, guided: bool, device: torch.device) -> Embedded:
        """Prompts and negative prompts; no negatives where there is no guidance."""
        whole, pooled = subject.prompt_embeds, subject.pooled_prompt_embeds
        uncond, uncond_pooled = subject.negative_prompt_embeds, subject.negative_pooled_prompt_embeds
        zeros, dtype = subject.negative_prompt is None and self.force_zeros_for_empty_prompt, self.dtype
        texts = self._readings(subject.texts or (), subject.prompt_2)
        negatives = self._readings(
            subject.negative_texts if guided and uncond is None and not zeros else (),
            subject.negative_prompt_2,
        )
        laid = clip_text.layout(subject, *texts, *negatives)
        if subject.texts is not None:
            whole, made = clip_text.encode_side_by_side(texts, None, subject.clip_skip, laid)
            pooled = made if pooled is None else pooled
        assert whole is not None
        assert pooled is not None
        if guided and uncond is None:
            if zeros:
                uncond, uncond_pooled = torch.zeros_like(whole), torch.zeros_like(pooled)
            else:
                uncond, made = clip_text.encode_side_by_side(negatives, whole.shape[1], None, laid)
                uncond_pooled = made if uncond_pooled is None else uncond_pooled

        def placed(embeds: torch.Tensor) -> torch.Tensor:
            return repeated(embeds.to(device, dtype), subject.repeats)

        return Embedded(
            placed(whole),
            placed(uncond) if guided and uncond is not None else None,
            placed(pooled),
            placed(uncond_pooled) if guided and uncond_pooled is not None else None,
        )

    def _readings(self, texts: Sequence[str], seconds: str | list[str] | None) -> list[clip_text.Reading]:
        """Which encoder reads what: ``texts``, and ``seconds`` if there are any for the second encoder."""
        if self.tokenizer is None:
            return [clip_text.Reading(self.tokenizer_2, self.text_encoder_2, texts)]
        first = clip_text.Reading(self.tokenizer, self.text_encoder, texts)
        others = _spread(seconds, len(texts)) or texts
        return [first, clip_text.Reading(self.tokenizer_2, self.text_encoder_2, others)]

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        assert isinstance(conditions, XLConditions)
        return self.unet(
            latents,
            timestep,
            timestep_cond=conditions.timestep_cond,
            cross_attention_kwargs=conditions.cross_attention_kwargs,
            return_dict=False,
            **self.told(conditions),
            **residuals.as_arguments(),
        )[0]

    def told(self, conditions: Conditions) -> dict[str, Any]:
        """What every network that is conditioned as the UNet is takes, ControlNets included."""
        assert isinstance(conditions, XLConditions)
        added = {"text_embeds": conditions.add_text_embeds, "time_ids": conditions.add_time_ids}
        return {"encoder_hidden_states": conditions.prompt_embeds, "added_cond_kwargs": added}

    @property
    def coder(self) -> Any:
        return codec.accurate(self.vae)

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        """Pictures in [-1, 1] from latents, marked before anything is cut off."""
        coder = self.coder
        pixels = codec.decode(coder, latents.to(coder.dtype), generator)
        wanted = watermark.is_available() if self.add_watermarker is None else self.add_watermarker
        return watermark.marked(pixels) if wanted else pixels


@dataclass(frozen=True)
class StableDiffusionXLFromImage(StableDiffusionXL):
    """The family in the tasks that start from a picture."""

    negative_sizes_as_pair: ClassVar[bool] = False


@dataclass(frozen=True)
class StableDiffusionXLEditing(StableDiffusionXL):
    """The family in editing by instruction; CosXL was trained on the picture's latents in the denoiser's unit."""

    is_cosxl_edit: bool | None = option(False)

    @property
    def picture_unit(self) -> float:
        return self.vae.config.scaling_factor if self.is_cosxl_edit else 1.0


@dataclass(frozen=True)
class StableDiffusionXLWithControlNet(StableDiffusionXL):
    """The family with one or several ControlNets beside its denoiser."""

    controlnet: ControlNetModel | MultiControlNetModel | ControlNetUnionModel | MultiControlNetUnionModel = (
        component(None)
    )


@dataclass(frozen=True)
class StableDiffusionXLFromImageWithControlNet(StableDiffusionXLWithControlNet):
    """The family with ControlNets in the tasks that start from a picture."""

    negative_sizes_as_pair: ClassVar[bool] = False


@dataclass(frozen=True)
class StableDiffusionXLWithAdapter(StableDiffusionXL):
    """The family with one or several T2I-Adapters beside its denoiser."""

    adapter: T2IAdapter | MultiAdapter = component(None)

    @property
    def picture_step(self) -> int:
        return self.adapter.downscale_factor


def _stacked(branches: Sequence[str], cond: Any, uncond: Any) -> torch.Tensor:
    """What each branch is told, along the batch: the prompt's, or for any but ``cond`` the negative prompt's."""
    return torch.cat([cond if name in TOLD_THE_PROMPT else uncond for name in branches])


def _spread(text: str | list[str] | None, count: int) -> tuple[str, ...] | None:
    """One text for all as one for each; nothing for an empty one, which stands for the first encoder's."""
    if not text:
        return None
    return (text,) * count if isinstance(text, str) else tuple(text)
