"""A picture of what an embedding means: noise, with CLIP's embedding, noised a little, told as a class (unCLIP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.diffusion.guidance import TOLD_THE_PROMPT
from calotype.diffusion.inputs import Degraded
from calotype.diffusion.tasks.from_image import in_turn
from calotype.diffusion.tasks.from_noise import initial_noise
from calotype.diffusion.tasks.task import Path, Start, Task
from calotype.nn.embeddings import sinusoidal_embedding

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family


class OfEmbedding(Task):
    """Start from noise; the denoiser is told the picture's embedding and how noisy that is."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a noise level that the schedule of embeddings does not have."""
        scheduler: Any = family.image_noising_scheduler  # type: ignore[attr-defined]
        level, levels = Degraded.of(arguments).noise_level, scheduler.config.num_train_timesteps
        if level >= levels:
            raise InputError(f"noise_level must be between 0 and {levels - 1} for this model, not {level}.")

    def start(self, call: Call, path: Path) -> Start:
        """Noise the embedding, then draw the latents' noise."""
        family: Any = call.family
        embeds: torch.Tensor = family.seen(call)
        generator: Any = call.noise.generator
        if isinstance(
            generator, list | tuple
        ):  # one for each picture, of which several may show one embedding
            embeds = in_turn(embeds, call.pictures)
        level = Degraded.of(call.arguments).noise_level
        told = in_turn(noised(family, embeds, level, generator=generator), call.pictures)
        latents = initial_noise(call) * call.scheduler.init_noise_sigma
        labels = [
            told if name in TOLD_THE_PROMPT else torch.zeros_like(told) for name in call.guidance.branches
        ]
        return Start(latents, conditions={"class_labels": torch.cat(labels)})


def noised(
    family: Any,
    embeds: torch.Tensor,
    level: int,
    *,
    noise: torch.Tensor | None = None,
    generator: Generators = None,
) -> torch.Tensor:
    """Embeddings (batch, channels) noised to ``level``, followed by the sinusoids of the level: (batch, 2·channels)."""
    if noise is None:
        noise = randn_tensor(embeds.shape, generator, embeds.device, embeds.dtype)
    levels = torch.full((len(embeds),), level, dtype=torch.long, device=embeds.device)
    normalizer = family.image_normalizer
    embeds = family.image_noising_scheduler.add_noise(normalizer.scale(embeds), noise, levels)
    embeds = normalizer.unscale(embeds)
    told = sinusoidal_embedding(levels, embeds.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0.0)
    return torch.cat([embeds, told.to(embeds.dtype)], dim=1)
