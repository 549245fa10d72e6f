"""Enlarging a picture: noise, with the small picture itself, noised a little, beside it (arXiv:2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.core.random import randn_tensor
from calotype.diffusion.inputs import Degraded, Picture, Size
from calotype.diffusion.tasks.depth import pictures_in
from calotype.diffusion.tasks.edit import noise_beside
from calotype.diffusion.tasks.from_image import FromImage, drawn_apart, repeated_to
from calotype.diffusion.tasks.task import Path, Start, Task
from calotype.image_processor import VaeImageProcessor

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family

_PICTURE = FromImage()
CHANNELS = 3


class Upscale(Task):
    """Start from noise in latents as large as the picture is; the denoiser is told how noisy the picture is."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a picture, or too high a noise level."""
        _PICTURE.check(family, arguments)
        level, highest = Degraded.of(arguments).noise_level, getattr(family, "max_noise_level", None)
        if highest is not None and level > highest:
            raise InputError(f"noise_level must be at most {highest} for this model, not {level}.")

    def beside(self, family: Family) -> tuple[int, ...]:
        """The picture."""
        return (CHANNELS,)

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """The picture's size, rounded down to what the autoencoder divides, times the enlargement."""
        first = pictures_in(Picture.of(arguments).image)[0]
        first = first if hasattr(first, "height") else first[None]
        height, width = bicubic(family).get_default_height_width(first)
        factor = family.scale_factor
        return Size(height * factor, width * factor).checked(family.default_size, factor, pictures)

    def start(self, call: Call, path: Path) -> Start:
        """Noise the picture, then draw the latents' noise."""
        family: Any = call.family
        pixels = bicubic(family).preprocess(Picture.of(call.arguments).image)
        if pixels.shape[1] != CHANNELS:
            raise InputError(
                f"The picture has {pixels.shape[1]} channels; convert it to {CHANNELS}, as with image.convert('RGB')."
            )
        pixels = drawn_apart(call, pixels).to(call.device, family.dtype)
        level = torch.tensor([Degraded.of(call.arguments).noise_level], device=call.device)
        generator = call.noise.generator
        if isinstance(generator, list | tuple):
            generator = generator[: len(pixels)]
        noise = randn_tensor(pixels.shape, generator, call.device, pixels.dtype)
        pixels = repeated_to(family.low_res_scheduler.add_noise(pixels, noise, level), call.pictures)
        latents = noise_beside(call)
        labels = level.repeat(call.pictures * len(call.guidance.branches))
        return Start(latents, {"image": pixels}, channels=("image",), conditions={"class_labels": labels})

    def finish(self, call: Call, images: Any, output_type: str) -> Any:
        """Mark pictures, where the pipeline has a watermarker."""
        marker = getattr(call.family, "watermarker", None)
        return images if marker is None or output_type != "pil" else marker.apply_watermark(images)


def bicubic(family: Family) -> VaeImageProcessor:
    """Prepares the pictures that are enlarged."""
    return VaeImageProcessor(vae_scale_factor=family.scale_factor, resample="bicubic")
