"""The objective of a convolutional VAE without adversary or perceptual network, and the scale of its latents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def gradient_loss(predicted: torch.Tensor, wanted: torch.Tensor, scales: int = 3) -> torch.Tensor:
    """Mean absolute error of the finite differences over x and y at ``scales`` octaves, summed.

    A plain L1 error forgives edges that are soft by half a pixel; differences do not. Images [B, C, H, W].
    """
    difference = predicted - wanted
    total = difference.new_zeros(())
    for scale in range(scales):
        if scale:
            difference = F.avg_pool2d(difference, 2)
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return total


def kl_to_standard_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp logvar) || N(0, 1)), averaged over all latent elements, in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class AutoencoderObjective(nn.Module):
    """L1 + ``sharpness`` x multi-scale gradient error + ``kl`` x KL per latent element, on images in [-1, 1].

    ``color`` weighs the squared error, and twice as much that of means over 4 x 4 pixels: a short training with
    absolute errors alone learns what is light and dark long before it learns the colours of small things.
    """

    vae: Any

    def __init__(self, vae: nn.Module, sharpness: float = 1.0, kl: float = 1e-4, color: float = 0.0) -> None:
        super().__init__()
        self.vae = vae
        self.sharpness = sharpness
        self.kl = kl
        self.color = color

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``batch["images"]`` [B, 3, H, W] in [-1, 1] and ``batch["noise"]`` of the latents' shape."""
        images = batch["images"]
        posterior = self.vae.encode(images).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * logvar).exp() * batch["noise"]
        decoded = self.vae.decode(latents).sample.float()
        l1 = (decoded - images).abs().mean()
        gradient = gradient_loss(decoded, images)
        kl = kl_to_standard_normal(mean, logvar)
        loss = l1 + self.sharpness * gradient + self.kl * kl
        if self.color:
            difference = decoded - images
            coarse = F.avg_pool2d(difference, 4).square().mean()
            loss = loss + self.color * (difference.square().mean() + 2 * coarse)
        return {"loss": loss, "l1": l1, "kl": kl}


@torch.no_grad()
def psnr(vae: Any, images: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of encoding and decoding images in [-1, 1], at the posterior's mean."""
    decoded = vae.decode(vae.encode(images).latent_dist.mean).sample.float().clamp(-1, 1)
    return (10 * torch.log10(4 / (decoded - images).square().mean())).item()


@torch.no_grad()
def fold_latents(vae: Any, shift: torch.Tensor, scale: torch.Tensor) -> None:
    """Latents become (latents - shift) / scale, channel by channel (float64 [C] each), and decode as before.

    The 1x1 convolutions on both sides of the latents absorb it; the log-variance moves by -2 log(scale).
    """
    channels = vae.config.latent_channels
    encode, decode = vae.quant_conv, vae.post_quant_conv
    w, b = encode.weight.double(), encode.bias.double()
    w[:channels] /= scale[:, None, None, None]
    b[:channels] = (b[:channels] - shift) / scale
    b[channels:] -= 2 * scale.log()
    encode.weight.copy_(w)
    encode.bias.copy_(b)
    w, b = decode.weight.double(), decode.bias.double()
    decode.bias.copy_(b + (w[:, :, 0, 0] * shift).sum(1))
    decode.weight.copy_(w * scale[None, :, None, None])


@torch.no_grad()
def standardise_latents(vae: Any, image_batches: Iterable[torch.Tensor]) -> float:
    """Make each latent channel have mean 0 and standard deviation 1 on these images, and return the scaling factor.

    Diffusion assumes such latents, while ``scaling_factor`` can only scale all channels alike. The result, 1 / std over
    all elements as measured after the change, is also registered in the configuration.
    """
    means = torch.cat([vae.encode(images).latent_dist.mean for images in image_batches]).double()
    shift, scale = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))

    fold_latents(vae, shift, scale)
    standard = (means - shift[None, :, None, None]) / scale[None, :, None, None]
    factor = round(1 / standard.std().item(), 5)
    vae.register_to_config(scaling_factor=factor)
    return factor
