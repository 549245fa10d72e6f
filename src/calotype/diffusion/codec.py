"""Between pictures and the latents of a KL autoencoder, in the units that its diffusion model was trained in."""

from __future__ import annotations

import copy
from typing import Any

import torch

from calotype.core.frames import together
from calotype.diffusion.fitting import pictures_of


def _per_channel(vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation of each latent channel, where the autoencoder states them."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return None
    shape = (1, -1, 1, 1)
    return latents.new_tensor(mean).view(shape), latents.new_tensor(std).view(shape)


def accurate(vae: Any) -> Any:
    """The autoencoder itself, or a float32 copy of one in float16 that says that it overflows there."""
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        return copy.deepcopy(vae).to(torch.float32)
    return vae


def encode(vae: Any, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Latents of pictures in [-1, 1] (batch, channels, height, width), drawn from the posterior if there is one."""
    encoded = vae.encode(pixels)
    latents = encoded.latent_dist.sample(generator) if _distributes(encoded) else encoded.latents
    statistics = _per_channel(vae, latents)
    if statistics is not None:
        mean, std = statistics
        return (latents - mean) * vae.config.scaling_factor / std
    return vae.config.scaling_factor * latents


def _distributes(encoded: Any) -> bool:
    """Whether it is a distribution; a tiny autoencoder gives latents outright, for which nothing is drawn."""
    return hasattr(encoded, "latent_dist")


def moments(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of what :func:`encode` draws for pictures in [-1, 1]."""
    encoded = vae.encode(pixels)
    if not _distributes(encoded):
        return vae.config.scaling_factor * encoded.latents, torch.zeros_like(encoded.latents)
    posterior = encoded.latent_dist
    statistics = _per_channel(vae, posterior.mean)
    scale = vae.config.scaling_factor
    if statistics is None:
        return posterior.mean * scale, posterior.std * scale
    mean, std = statistics
    return (posterior.mean - mean) * scale / std, posterior.std * scale / std


def decode(vae: Any, latents: torch.Tensor, generator: Any = None) -> torch.Tensor:
    """Pictures in [-1, 1] from latents.

    Latents of videos (videos, channels, frames, height, width) give their frames in float32, (videos, frames, …).
    """
    if latents.ndim == 5:
        return decode(vae, together(latents), generator).float().unflatten(0, (-1, latents.shape[2]))
    statistics = _per_channel(vae, latents)
    if statistics is not None:
        mean, std = statistics
        latents = latents * std / vae.config.scaling_factor + mean
    else:
        latents = latents / vae.config.scaling_factor
    return pictures_of(vae, latents, generator)


def mode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The likeliest latents of pictures in [-1, 1], in the autoencoder's own unit."""
    encoded = vae.encode(pixels)
    likeliest: torch.Tensor = encoded.latent_dist.mode() if _distributes(encoded) else encoded.latents
    return likeliest
