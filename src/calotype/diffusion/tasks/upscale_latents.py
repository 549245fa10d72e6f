"""Enlarging latents twice: noise at the larger size, with the smaller latents beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from calotype.diffusion.inputs import Picture, Size
from calotype.diffusion.tasks.edit import noise_beside
from calotype.diffusion.tasks.from_image import FromImage, encoded
from calotype.diffusion.tasks.task import Path, Start, Task
from calotype.diffusion.tasks.upscale import bicubic

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family

FACTOR = 2
_PICTURE = FromImage()


class UpscaleLatents(Task):
    """Start from noise and read latents, or a picture's latents, of half the size."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a picture."""
        _PICTURE.check(family, arguments)

    def beside(self, family: Family) -> tuple[int, ...]:
        """The picture's latents."""
        return (family.latent_channels,)

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """Twice the picture's size, after that is rounded down to what the autoencoder divides."""
        height, width = _PICTURE.size(family, arguments, pictures)
        size = Size(height * FACTOR, width * FACTOR)
        return size.checked(family.default_size, family.scale_factor, pictures)

    def start(self, call: Call, path: Path) -> Start:
        """Encode the picture, then draw the noise."""
        small = encoded(call, bicubic(call.family).preprocess(Picture.of(call.arguments).image))
        large = torch.nn.functional.interpolate(small, scale_factor=FACTOR, mode="nearest")
        return Start(noise_beside(call), {"image_cond": large}, channels=("image_cond",))
