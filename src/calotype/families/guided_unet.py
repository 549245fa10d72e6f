"""What the families with a guided UNet on a KL autoencoder's latents have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.guidance import COND, PERTURBED, UNCOND, Guidance, Unguided, classifier_free
from calotype.diffusion.inputs import Guide

if TYPE_CHECKING:
    from calotype.diffusion.call import Call


def vae_scale_factor(vae: Any) -> int:
    """Pixels a latent, along one side."""
    return 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8


def sample_size(unet: Any) -> tuple[int, int]:
    """Height and width of the latents that a UNet was trained on; ``InputError`` if it does not say."""
    size = unet.config.sample_size
    if size is None:
        raise InputError("The UNet's configuration has no sample_size, so give height and width.")
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def unet_guidance(unet: Any, arguments: Mapping[str, Any]) -> Guidance:
    """Classifier-free guidance, or none for a UNet that is told the scale as an embedding."""
    guide = Guide.of(arguments)
    if unet.config.get("time_cond_proj_dim") is not None:
        return Unguided()
    return classifier_free(guide.guidance_scale, guide.guidance_rescale)


def unet_branches(unet: Any) -> tuple[str, ...]:
    """The branches that a UNet can predict for; without the prompt none that is told the scale as an embedding."""
    return (
        (COND, PERTURBED) if unet.config.get("time_cond_proj_dim") is not None else (COND, UNCOND, PERTURBED)
    )


def embedded_scale(unet: Any, call: Call) -> torch.Tensor | None:
    """The guidance scale for a UNet that takes it so, one row a picture and branch; otherwise None."""
    width = unet.config.get("time_cond_proj_dim")
    if width is None:
        return None
    row = guidance_embedding(Guide.of(call.arguments).guidance_scale, width)
    return row.to(call.device, call.family.dtype).expand(call.pictures * len(call.guidance.branches), -1)


def guidance_embedding(scale: float | torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoids of 1000·(scale − 1), shape (N, width): how distilled UNets are told w (arXiv:2310.04378).

    ``scale`` is one number or several (N,).
    """
    scales = torch.as_tensor(scale, dtype=torch.float64).reshape(-1, 1)
    half = width // 2
    powers = torch.arange(half, dtype=torch.float32, device=scales.device)
    frequencies = torch.exp(powers * -(math.log(10_000.0) / (half - 1)))
    angles = ((scales - 1) * 1000.0).float() * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
