"""Unconditional diffusion in pixels (arXiv:2006.11239): a UNet and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.diffusion.conditions import Conditions, Nothing
from calotype.diffusion.family import Family, component
from calotype.diffusion.guidance import COND, Guidance, Unguided
from calotype.diffusion.inputs import Batch

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.controls.control import Residuals
    from calotype.models.unet_2d import UNet2DModel
    from calotype.schedulers.scheduler import SchedulerMixin


class PixelFamily(Family):
    """Diffusion in pixels: the latents are the picture, in [-1, 1]; abstract."""

    @property
    def multiple(self) -> int:
        return 1

    @property
    def scale_factor(self) -> int:
        return 1

    def to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return pixels


@dataclass(frozen=True)
class Pixels(PixelFamily):
    """The family bound to its components."""

    unet: UNet2DModel = component()
    scheduler: SchedulerMixin = component()

    def subject(self, arguments: Mapping[str, Any]) -> Batch:
        return Batch.of(arguments)

    @property
    def default_size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def branches(self) -> tuple[str, ...]:
        return (COND,)

    def guidance(self, arguments: Mapping[str, Any]) -> Guidance:
        return Unguided()

    def encode(self, call: Call) -> Conditions:
        return Nothing()

    @property
    def latent_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def input_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, residuals: Residuals
    ) -> torch.Tensor:
        return self.unet(latents, timestep, return_dict=False)[0]

    def decode(self, latents: torch.Tensor, generator: Any) -> torch.Tensor:
        return latents
