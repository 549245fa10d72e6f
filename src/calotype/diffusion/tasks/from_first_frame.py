"""Image-to-video with the picture as the first frame (I2VGen-XL, arXiv:2311.04145)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.random import aside
from calotype.diffusion.inputs import Picture
from calotype.diffusion.tasks.frames_from_noise import FramesFromNoise
from calotype.diffusion.tasks.from_image import copies, in_turn
from calotype.diffusion.tasks.task import Path, Start, Task

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family


_FRAMES = FramesFromNoise()


@dataclass(frozen=True)
class FromFirstFrame(Task):
    """Noise for all frames, and beside it the picture's latents for the first and their places in time for the rest."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse what are no pictures, and pictures that do not go round the videos to make."""
        pictures = family.stills(Picture.of(arguments).image)  # type: ignore[attr-defined]
        copies(len(pictures), family.subject(arguments).pictures)

    def start(self, call: Call, path: Path) -> Start:
        """Draw the picture's latents, aside from what the generators draw; then draw the noise."""
        first = first_latents(call)[:, :, None]
        frames = call.latent_shape[2]
        places = torch.arange(1, frames, dtype=torch.float64) / max(frames - 1, 1)
        later = places.to(first).view(1, 1, -1, 1, 1).expand(*first.shape[:2], -1, *first.shape[3:])
        beside = torch.cat([first, later], dim=2)
        told = beside.repeat(len(call.guidance.branches), 1, 1, 1, 1)
        return replace(_FRAMES.start(call, path), conditions={"image_latents": told})

    def decode(self, call: Call, latents: torch.Tensor) -> torch.Tensor:
        """So many frames at once as the call allows."""
        return _FRAMES.decode(call, latents)


def first_latents(call: Call) -> torch.Tensor:
    """Latents (videos of the call, channels, height, width) of the pictures, the videos of one together."""
    family: Any = call.family
    generator = aside(call.noise.generator)
    pixels = family.first_frames(call).to(call.device, family.dtype)
    if not isinstance(generator, list | tuple):
        return in_turn(family.to_latents(pixels, generator), call.pictures)
    pairs = zip(in_turn(pixels, call.pictures).split(1), generator, strict=True)
    return torch.cat([family.to_latents(one, own) for one, own in pairs])
