"""Tasks: where the latents start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.core.random import randn_tensor
from calotype.diffusion.inputs import Noise


class Task(ABC):
    """What is made of the given inputs: it chooses the latents that the loop starts from."""

    @abstractmethod
    def start(
        self, noise: Noise, shape: tuple[int, ...], scheduler: Any, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """Latents of ``shape`` at the noise level of the scheduler's first timestep."""


class FromNoise(Task):
    """Text-to-image and unconditional generation: pure noise, at the scheduler's initial level."""

    def start(
        self, noise: Noise, shape: tuple[int, ...], scheduler: Any, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """Draw the noise, or take what the caller gives."""
        if noise.latents is None:
            latents = randn_tensor(shape, generator=noise.generator, device=device, dtype=dtype)
        elif noise.latents.ndim != len(shape) or tuple(noise.latents.shape[:2]) != shape[:2]:
            raise InputError(
                f"latents has the shape {tuple(noise.latents.shape)}; this call needs {shape}, where height "
                f"and width may differ."
            )
        else:
            latents = noise.latents.to(device)
        return latents * scheduler.init_noise_sigma
