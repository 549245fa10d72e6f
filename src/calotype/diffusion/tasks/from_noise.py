"""Text-to-image and unconditional generation: pure noise, at the scheduler's initial level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.core.random import randn_tensor
from calotype.diffusion.inputs import Size
from calotype.diffusion.tasks.task import Path, Start, Task, picture_size

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family


@dataclass(frozen=True)
class FromNoise(Task):
    """Start from noise alone, at the size of the picture called ``like`` if there is one to be like."""

    like: str | None = None

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """As asked for, or what the model was trained for, or what the picture has."""
        if self.like is None:
            return Size.of(arguments).checked(family.default_size, family.multiple, pictures)
        picture = arguments[self.like]
        while isinstance(picture, list | tuple):
            picture = picture[0]
        return picture_size(family, picture, Size.of(arguments), pictures)

    def start(self, call: Call, path: Path) -> Start:
        """Draw the noise, or take what the caller gives."""
        return Start(initial_noise(call) * call.scheduler.init_noise_sigma)


def initial_noise(call: Call) -> torch.Tensor:
    """Standard normal noise in the call's latent shape, or the ``latents`` that the caller gives in its place."""
    noise, shape = call.noise, call.latent_shape
    if noise.latents is None:
        return randn_tensor(shape, generator=noise.generator, device=call.device, dtype=call.family.dtype)
    if noise.latents.ndim != len(shape) or tuple(noise.latents.shape[:2]) != shape[:2]:
        raise InputError(
            f"latents has the shape {tuple(noise.latents.shape)}; this call needs {shape}, where height and width may "
            f"differ."
        )
    return noise.latents.to(call.device)
