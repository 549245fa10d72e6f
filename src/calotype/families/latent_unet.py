"""What the families with a UNet on the latents of one KL autoencoder share."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from calotype.diffusion import codec
from calotype.diffusion.conditions import Conditions
from calotype.diffusion.family import Family
from calotype.diffusion.guidance import Guidance
from calotype.families.guided_unet import sample_size, unet_branches, unet_guidance, vae_scale_factor

if TYPE_CHECKING:
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.unet_2d_condition import UNet2DConditionModel

SIZE_STEP = 8
"""Pixels that a size must divide by even where the autoencoder shrinks by less, as everywhere in these families."""


@dataclass(frozen=True)
class UNetConditions(Conditions):
    """What the UNet takes: states to attend to (branches·batch, tokens, channels), and the embedded guidance scale."""

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None = None
    w_embedding: torch.Tensor | None = None
    cross_attention_kwargs: dict[str, Any] | None = None
    class_labels: torch.Tensor | None = None


class LatentFamily(Family):
    """Latents of a KL autoencoder; abstract."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel

    beside: ClassVar[tuple[str, ...]] = ("composite",)

    @property
    def scale_factor(self) -> int:
        return vae_scale_factor(self.vae)

    @property
    def default_size(self) -> tuple[int, int]:
        height, width = sample_size(self.unet)
        return height * self.scale_factor, width * self.scale_factor

    @property
    def multiple(self) -> int:
        return math.lcm(SIZE_STEP, self.scale_factor)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def input_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def coder(self) -> Any:
        """The autoencoder as it is used: itself, or a copy in a type that it works in."""
        return self.vae

    @property
    def picture_unit(self) -> float:
        """What a picture's latents are multiplied by where a denoiser trained to edit reads them beside its own."""
        return 1.0

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        coder = self.coder
        return codec.decode(coder, latents.to(coder.dtype), generator)

    def precise(self) -> Self | None:
        if self.coder.dtype == torch.float32:
            return None
        return replace(self, vae=copy.deepcopy(self.vae).to(torch.float32))  # type: ignore[type-var]

    def to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        coder = self.coder
        return codec.encode(coder, pixels.to(coder.dtype), generator).to(pixels.dtype)

    def likeliest(self, pixels: torch.Tensor) -> torch.Tensor:
        """The likeliest latents of pictures in [-1, 1], in the autoencoder's own unit."""
        coder = self.coder
        return codec.mode(coder, pixels.to(coder.dtype)).to(pixels.dtype)


class LatentUNetFamily(LatentFamily):
    """A UNet that predicts from latents and ``UNetConditions``; abstract."""

    @property
    def branches(self) -> tuple[str, ...]:
        return unet_branches(self.unet)

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return unet_guidance(self.unet, arguments)

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        assert isinstance(conditions, UNetConditions)
        return self.unet(
            latents,
            timestep,
            timestep_cond=conditions.w_embedding,
            cross_attention_kwargs=conditions.cross_attention_kwargs,
            return_dict=False,
            **({} if conditions.class_labels is None else {"class_labels": conditions.class_labels}),
            **self.told(conditions),
            **residuals.as_arguments(),
        )[0]

    def told(self, conditions: Conditions) -> dict[str, Any]:
        """What every network that is conditioned as the UNet is takes, ControlNets included."""
        assert isinstance(conditions, UNetConditions)
        return {"encoder_hidden_states": conditions.prompt_embeds}
