"""What the families with a UNet on the latents of MoVQ (arXiv:2209.09002) share: Kandinsky 2 and 3."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from calotype.diffusion.conditions import Conditions
from calotype.diffusion.family import Family
from calotype.diffusion.guidance import Guidance, classifier_free
from calotype.diffusion.inputs import Guide
from calotype.diffusion.learned_variance import guiding_the_mean, without_variance
from calotype.families.guided_unet import vae_scale_factor
from calotype.image_processor import VaeImageProcessor

if TYPE_CHECKING:
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.vq_model import VQModel
    from calotype.schedulers.scheduler import SchedulerMixin

SIDE = 512
"""The side of the pictures that Kandinsky 2 makes unless asked for another."""


class MoVQFamily(Family):
    """Latents of MoVQ, as they come from the encoder: neither scaled nor quantised; abstract."""

    unet: Any
    scheduler: SchedulerMixin
    movq: VQModel

    @property
    def scale_factor(self) -> int:
        return vae_scale_factor(self.movq)

    @property
    def default_size(self) -> tuple[int, int]:
        return SIDE, SIDE

    @property
    def multiple(self) -> int:
        return 1  # any size is taken, and rounded up by latent_shape

    @property
    def picture_step(self) -> int:
        return 1  # the image processor rounds

    def latent_shape(self, pictures: int, height: int, width: int) -> tuple[int, ...]:
        """Latents of pictures that are at least as large as asked for, the latents' sides divisible by the scale."""
        high, wide = (-(-side // self.scale_factor**2) * self.scale_factor for side in (height, width))
        return pictures, self.latent_channels, high, wide

    @property
    def latent_channels(self) -> int:
        return self.movq.config.latent_channels

    @property
    def input_channels(self) -> int:
        return self.unet.config.in_channels

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

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return guiding_the_mean(classifier_free(Guide.of(arguments).guidance_scale), self.scheduler)

    @abstractmethod
    def reads(self, conditions: Conditions) -> dict[str, Any]:
        """The UNet's keyword arguments."""

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        prediction = self.unet(
            latents, timestep, return_dict=False, **self.reads(conditions), **residuals.as_arguments()
        )[0]
        return without_variance(prediction, self.latent_channels, self.scheduler)

    def to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return self.movq.encode(pixels, return_dict=False)[0]

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        return self.movq.decode(latents, force_not_quantize=True, return_dict=False)[0]
