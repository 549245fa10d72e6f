"""Text-to-video: pure noise for all frames, and frames decoded in parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from calotype.core.frames import together
from calotype.diffusion.inputs import Decoding
from calotype.diffusion.tasks.from_noise import initial_noise
from calotype.diffusion.tasks.task import Path, Start, Task

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.free_noise import FreeNoise


@dataclass(frozen=True)
class FramesFromNoise(Task):
    """Start from noise alone; an autoencoder of pictures decodes so many frames at once as the call allows."""

    def start(self, call: Call, path: Path) -> Start:
        """Draw the noise, or take what the caller gives; for windows of frames as the family's FreeNoise says."""
        free: FreeNoise | None = getattr(call.family, "free_noise", None)
        noise = initial_noise(call) if free is None else free.noise(call)
        return Start(noise * call.scheduler.init_noise_sigma)

    def decode(self, call: Call, latents: torch.Tensor) -> torch.Tensor:
        """Videos, so many frames at once as the call allows."""
        return decoded_in_parts(call, latents)


def decoded_in_parts(call: Call, latents: torch.Tensor) -> torch.Tensor:
    """Videos (videos, frames, channels, height, width) in float32, from (videos, channels, frames, …)."""
    frames = together(latents)
    size = Decoding.of(call.arguments).decode_chunk_size or len(frames)
    parts = [call.family.decode(part, call.noise.generator) for part in frames.split(size)]
    return torch.cat(parts).float().unflatten(0, (len(latents), -1))
