"""Enlarging a picture: noise, with the picture, as large as the noise, beside it (arXiv:2104.07636)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from calotype.diffusion.inputs import Size
from calotype.diffusion.tasks.from_image import in_turn
from calotype.diffusion.tasks.from_noise import initial_noise
from calotype.diffusion.tasks.task import Path, Start, Task

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family


@dataclass(frozen=True)
class Enlarge(Task):
    """Start from noise and read the small picture, in the latents' size, beside it.

    The latents are as large as the model was trained for, or with ``in_latents`` as large as the picture.
    """

    in_latents: bool = False

    def beside(self, family: Family) -> tuple[int, ...]:
        """The picture."""
        return (family.latent_channels,)

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """What the model was trained for, or the picture's size times the enlargement."""
        size = Size()
        if self.in_latents:
            height, width = family.small_size(arguments)  # type: ignore[attr-defined]
            size = Size(height * family.scale_factor, width * family.scale_factor)
        return size.checked(family.default_size, family.multiple, pictures)

    def start(self, call: Call, path: Path) -> Start:
        """Draw the noise and fit the picture to it."""
        latents = initial_noise(call) * call.scheduler.init_noise_sigma
        family: Any = call.family
        small = in_turn(family.small(call).float(), call.pictures)
        if small.shape[2:] != latents.shape[2:]:
            small = F.interpolate(
                small, latents.shape[2:], mode="bicubic", align_corners=False, antialias=True
            )
        return Start(latents, {"image": small.to(latents)}, channels=("image",))
