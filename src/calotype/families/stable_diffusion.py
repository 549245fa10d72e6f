"""Stable Diffusion 1.x and 2.x (arXiv:2112.10752): CLIP text, a UNet on the latents of a KL autoencoder."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from calotype.core.errors import InputError
from calotype.diffusion import codec
from calotype.diffusion.conditions import Conditions, repeated
from calotype.diffusion.guidance import Guidance, Unguided, classifier_free
from calotype.diffusion.images import present
from calotype.diffusion.inputs import Attention, Guide, Prompt
from calotype.families import clip_text
from calotype.families.family import Family, component, option

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from calotype.diffusion.call import Call
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.pipelines.safety_checker import StableDiffusionSafetyChecker
    from calotype.schedulers.scheduler import SchedulerMixin

logger = logging.getLogger(__name__)

SIZE_STEP = 8
"""Pixels that a size must divide by even where the autoencoder shrinks by less, as everywhere in this family."""


@dataclass(frozen=True)
class UNetConditions(Conditions):
    """What the UNet takes: text (branches·batch, tokens, channels), and the guidance scale where it is embedded."""

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None = None
    timestep_cond: torch.Tensor | None = None
    cross_attention_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class StableDiffusion(Family):
    """The family bound to its components."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    unet: UNet2DConditionModel = component()
    scheduler: SchedulerMixin = component()
    safety_checker: StableDiffusionSafetyChecker = component()
    feature_extractor: CLIPImageProcessor = component()
    image_encoder: CLIPVisionModelWithProjection | None = component(None)
    requires_safety_checker: bool = option(True)

    tensor_names: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "negative_prompt_embeds")

    @classmethod
    def prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse a safety checker without its feature extractor; repair the scheduler settings of early checkpoints."""
        if values["safety_checker"] is not None and values["feature_extractor"] is None:
            raise InputError(
                "A safety checker needs a feature extractor: pass feature_extractor=…, or safety_checker=None to go "
                "without."
            )
        if values["safety_checker"] is None and values["requires_safety_checker"]:
            logger.warning(
                "The safety checker is off (safety_checker=None): see to it that what you publish is filtered, as the "
                "licence of Stable Diffusion asks."
            )
        return {**values, "scheduler": modern(values["scheduler"])}

    def subject(self, arguments: Mapping[str, Any]) -> Prompt:
        return Prompt.of(arguments)

    @property
    def scale_factor(self) -> int:
        """Pixels a latent, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1) if self.vae is not None else 8

    @property
    def default_size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        if size is None:
            raise InputError("The UNet's configuration has no sample_size, so give height and width.")
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.scale_factor, width * self.scale_factor

    @property
    def multiple(self) -> int:
        return math.lcm(SIZE_STEP, self.scale_factor)

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        guide = Guide.of(arguments)
        if self.unet.config.time_cond_proj_dim is not None:
            return Unguided()  # the scale goes in as an embedding instead
        return classifier_free(guide.guidance_scale, guide.guidance_rescale)

    def encode(self, call: Call) -> UNetConditions:
        attention = Attention.of(call.arguments)
        if attention.ip_adapter_image is not None or attention.ip_adapter_image_embeds is not None:
            raise InputError("ip_adapter_image is given, but no IP-Adapter is loaded in this pipeline.")
        guided = "uncond" in call.guidance.branches
        cond, uncond = self.embed(call.subject, guided, call.device)
        width = self.unet.config.time_cond_proj_dim
        scale = Guide.of(call.arguments).guidance_scale
        return UNetConditions(
            prompt_embeds=cond if uncond is None else torch.cat([uncond, cond]),
            negative_prompt_embeds=uncond,
            timestep_cond=None
            if width is None
            else guidance_embedding(scale, width).to(call.device, self.dtype).expand(call.pictures, -1),
            cross_attention_kwargs=attention.cross_attention_kwargs,
        )

    def embed(
        self, subject: Prompt, guided: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prompt and negative prompt as (pictures, tokens, channels); no negative where there is no guidance."""
        cond = subject.prompt_embeds
        if subject.texts is not None:
            length = self.tokenizer.model_max_length
            clip_text.warn_of_cut(self.tokenizer, subject.texts, length)
            cond = clip_text.encode(
                self.text_encoder, self.tokenizer, subject.texts, length, subject.clip_skip
            )
        assert cond is not None
        uncond = subject.negative_prompt_embeds
        if guided and uncond is None:
            if self.text_encoder is None:
                raise InputError(
                    "Without a text encoder, guidance needs negative_prompt_embeds beside prompt_embeds."
                )
            # clip_skip concerns the prompt alone, as it always has in this family
            uncond = clip_text.encode(
                self.text_encoder, self.tokenizer, subject.negative_texts, cond.shape[1]
            )

        def placed(embeds: torch.Tensor) -> torch.Tensor:
            return repeated(embeds.to(device, self.text_dtype), subject.repeats)

        return placed(cond), placed(uncond) if guided and uncond is not None else None

    @property
    def text_dtype(self) -> torch.dtype:
        """The type that embeddings are handed on in."""
        return self.unet.dtype if self.text_encoder is None else self.text_encoder.dtype

    @property
    def dtype(self) -> torch.dtype:
        return self.text_dtype

    @property
    def latent_channels(self) -> int:
        """Channels of a picture's latents."""
        return self.vae.config.latent_channels

    @property
    def input_channels(self) -> int:
        """Channels that the denoiser reads."""
        return self.unet.config.in_channels

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        assert isinstance(conditions, UNetConditions)
        return self.unet(
            latents,
            timestep,
            encoder_hidden_states=conditions.prompt_embeds,
            timestep_cond=conditions.timestep_cond,
            cross_attention_kwargs=conditions.cross_attention_kwargs,
            return_dict=False,
        )[0]

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        return self.vae.decode(
            latents / self.vae.config.scaling_factor, return_dict=False, generator=generator
        )[0]

    def to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return codec.encode(self.vae, pixels, generator)

    def screen(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        if self.safety_checker is None:
            return images, None
        pixels = self.feature_extractor(present(images, "pil"), return_tensors="pt").pixel_values
        return self.safety_checker(images=images, clip_input=pixels.to(images.device, self.text_dtype))


def guidance_embedding(scale: float, width: int) -> torch.Tensor:
    """Sinusoids of 1000·(scale − 1), shape (1, width): how distilled UNets are told w (arXiv:2310.04378)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10_000.0) / (half - 1)))
    angles = torch.tensor([[(scale - 1) * 1000.0]]) * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def modern(scheduler: Any) -> Any:
    """The scheduler with what early checkpoints' files leave out: steps_offset=1 and no clipping of latents."""
    if scheduler is None:
        return None
    config = scheduler.config
    repairs: dict[str, Any] = {}
    if config.get("steps_offset", 1) != 1:
        repairs["steps_offset"] = 1
    if config.get("clip_sample", False) is True:
        repairs["clip_sample"] = False
    if not repairs:
        return scheduler
    logger.warning(
        "The scheduler's configuration is from before these settings were fixed; using %s.", repairs
    )
    return type(scheduler).from_config({**config, **repairs})
