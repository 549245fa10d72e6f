"""Image-to-video: noise for all frames, with the latents of one picture beside each (arXiv:2311.15127)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.core.random import PictureGenerators, randn_tensor
from calotype.diffusion.guidance import UNCOND
from calotype.diffusion.inputs import Decoding, Motion, Noise
from calotype.diffusion.tasks.from_image import in_turn
from calotype.diffusion.tasks.from_noise import initial_noise
from calotype.diffusion.tasks.task import Path, Start, Task

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family


@dataclass(frozen=True)
class Animate(Task):
    """Start from noise and read the picture, itself a little noised; the branch that knows nothing reads zeros."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse latents that are no videos."""
        latents = Noise.of(arguments).latents
        if latents is not None and latents.ndim != 5:
            raise InputError(
                f"latents must be (videos, frames, channels, height, width), not {tuple(latents.shape)}."
            )

    def beside(self, family: Family) -> tuple[int, ...]:
        """The picture's latents."""
        return (family.latent_channels,)

    def start(self, call: Call, path: Path) -> Start:
        """Draw the picture's noise and encode the picture without a draw; then draw the frames' noise."""
        family: Any = call.family
        pixels = family.image_processor.preprocess(call.subject.image, height=call.height, width=call.width)
        pixels = noised(call, pixels.to(call.device), Motion.of(call.arguments).noise_aug_strength)
        latents = in_turn(family.seen(pixels).to(family.dtype), call.pictures)
        nothing = torch.zeros_like(latents)
        stacked = torch.cat([nothing if name == UNCOND else latents for name in call.guidance.branches])
        noise = initial_noise(call)
        if tuple(noise.shape) != tuple(call.latent_shape):
            raise InputError(
                f"latents has the shape {tuple(noise.shape)}; this call needs {call.latent_shape}."
            )
        return Start(noise * call.scheduler.init_noise_sigma, conditions={"image_latents": stacked})

    def decode(self, call: Call, latents: torch.Tensor) -> torch.Tensor:
        """So many frames of a video at once as the call allows."""
        size = Decoding.of(call.arguments).decode_chunk_size or latents.shape[1]
        parts = [call.family.decode(part, call.noise.generator) for part in latents.split(size, dim=1)]
        return torch.cat(parts, dim=1)


def noised(call: Call, pixels: torch.Tensor, strength: float) -> torch.Tensor:
    """Pictures with ``strength`` times standard normal noise; a picture for each video that has its own randomness."""
    generator = call.noise.generator
    if isinstance(generator, PictureGenerators):
        pixels = in_turn(pixels, call.pictures)
    elif isinstance(generator, list | tuple):
        generator = list(generator)[: len(pixels)]
    return pixels + strength * randn_tensor(pixels.shape, generator, call.device, pixels.dtype)
