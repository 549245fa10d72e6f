"""What members are told of a picture, in the forms in which users' pipelines hand it to them; all on the device."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_TAN_22 = 13573
"""The tangent of 22.5 degrees in units of 2^-15."""


def relative_disparity(depth: torch.Tensor, side: int | None = None) -> torch.Tensor:
    """One over the depth [B, P, P], from 0 for the farthest to 1 for the nearest of a picture, [B, 1, side, side].

    This is what an estimator of depth sees, up to its unit.
    """
    disparity = 1 / depth[:, None].float().clamp_min(1e-3)
    if side is not None:
        disparity = F.interpolate(disparity, size=(side, side), mode="bicubic", align_corners=False)
    low, high = disparity.amin((1, 2, 3), keepdim=True), disparity.amax((1, 2, 3), keepdim=True)
    return (disparity - low) / (high - low).clamp_min(1e-6)


def canny_lines(pictures: torch.Tensor, low: int = 100, high: int = 200, reach: int = 32) -> torch.Tensor:
    """Canny's edges of pictures uint8 [B, 3, P, P], 1 on lines and else 0, [B, 1, P, P].

    The lines of OpenCV's ``Canny`` with Sobel kernels of 3x3 and sums of absolute values, as
    :func:`calotype.annotators.canny` draws them, but that a weak line goes on for ``reach`` pixels from a strong one.
    """
    dx, dy, strength = _gradient(pictures)
    padded = F.pad(strength, (1, 1, 1, 1))

    def beside(rows: int, columns: int) -> torch.Tensor:
        height, width = strength.shape[-2:]
        return padded[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    # integers, as there: the direction falls into one of four sectors
    x, y = dx.abs(), dy.abs() << 15
    flat, steep = y < x * _TAN_22, y > x * _TAN_22 + (x << 16)
    level = (strength > beside(0, -1)) & (strength >= beside(0, 1))
    upright = (strength > beside(-1, 0)) & (strength >= beside(1, 0))
    falling = (strength > beside(-1, -1)) & (strength > beside(1, 1))
    rising = (strength > beside(-1, 1)) & (strength > beside(1, -1))
    slanted = torch.where((dx ^ dy) < 0, rising, falling)
    highest = torch.where(flat, level, torch.where(steep, upright, slanted))
    weak = (highest & (strength > low))[:, None].float()
    lines = weak * (strength > high)[:, None]
    for _ in range(reach):
        lines = weak * F.max_pool2d(lines, 3, stride=1, padding=1)
    return lines


def _gradient(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sobel's differences across and down and the sum of their absolute values, of the channel where it is greatest.

    Each int32 [B, P, P].
    """
    padded = F.pad(pictures.float(), (1, 1, 1, 1), mode="replicate")
    smooth_down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    smooth_across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    dx = (smooth_down[..., 2:] - smooth_down[..., :-2]).int()
    dy = (smooth_across[..., 2:, :] - smooth_across[..., :-2, :]).int()
    channel = (dx.abs() + dy.abs()).argmax(1, keepdim=True)
    dx, dy = dx.gather(1, channel)[:, 0], dy.gather(1, channel)[:, 0]
    return dx, dy, dx.abs() + dy.abs()
