"""Pictures as CLIP reads them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def normed(extractor: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures (batch, 3, height, width) in [0, 1], of the size that CLIP reads, with its mean and deviation."""
    return extractor(
        images=pixels,
        do_normalize=True,
        do_center_crop=False,
        do_resize=False,
        do_rescale=False,
        return_tensors="pt",
    ).pixel_values


def smoothly_resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pictures (batch, channels, height, width) in another size, blurred first where that is smaller.

    The blur is Gaussian with σ = (f - 1)/2 for pictures f times as large, cut off at 2σ; then bicubic interpolation
    with the corners in place.
    """
    for axis, target in ((-2, size[0]), (-1, size[1])):
        pixels = _blurred(pixels, axis, sigma=max((pixels.shape[axis] / target - 1) / 2, 0.001))
    return F.interpolate(pixels, size=size, mode="bicubic", align_corners=True)


def _blurred(pixels: torch.Tensor, axis: int, sigma: float) -> torch.Tensor:
    """Convolved along ``axis`` with a Gaussian, the picture mirrored at its edges."""
    radius = int(max(4 * sigma, 3)) // 2
    offsets = torch.arange(-radius, radius + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = pixels.shape[1]
    margin = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
    weight = kernel[None, None, :, None] if axis == -2 else kernel[None, None, None]
    padded = F.pad(pixels, margin, mode="reflect")
    return F.conv2d(padded, weight.expand(channels, -1, -1, -1), groups=channels)
