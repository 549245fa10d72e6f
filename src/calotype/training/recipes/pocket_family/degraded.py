"""Pictures as they are collected: cropped, blown up, blurred and grainy; and the numbers that tell so."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from calotype.training.recipes.pocket_family.denoising import Draw

BEST, WORST = 6.0, 2.5
"""Scores of clean pictures and of the most spoilt ones: the defaults of the refiner's pipeline."""
SMALLEST, LARGEST = 1.2, 1.6
"""How many times as large as the result an original is that is cropped."""
_SMALL = (0.375, 0.375, 0.5, 0.75)
"""How many times as large as the result small originals are, one as often as another."""
_SPOILT = 0.65
"""Share of the pictures that are not clean."""
_GRAIN = 0.2


def cropped(pictures: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [B, 3, P, P] cropped after they were enlarged.

    A quarter of the crops begins on the very left, and a quarter ends on the very right: in a crop from between, what
    stands anywhere in a picture is anywhere in the crop, and little is to be learned of where it was.

    Returns:
        pictures of the same size, and [B, 6]: height and width of the original, the crop's top and left corner in it,
        and the result's height and width.
    """
    side = pictures.shape[-1]
    original = (side * draw.uniform(low=SMALLEST, high=LARGEST)).round()
    place = draw.uniform(2)
    place[:, 1] = (2 * place[:, 1] - 0.5).clamp(0, 1)
    away = (original - side)[:, None]
    corner = (place * (away + 1)).floor().minimum(away)
    # the crop's middle and half its width, on a picture from -1 to 1
    half = side / original
    middle = (2 * corner + side) / original[:, None] - 1
    theta = torch.zeros((len(pictures), 2, 3), device=pictures.device)
    theta[:, 0, 0] = theta[:, 1, 1] = half
    theta[:, 0, 2], theta[:, 1, 2] = middle[:, 1], middle[:, 0]
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    seen = F.grid_sample(pictures, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    result = torch.full_like(original, float(side))
    sizes = torch.stack((original, original, corner[:, 0], corner[:, 1], result, result), dim=1)
    return seen.clamp(-1, 1), sizes


def blown_up_at_random(pictures: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [B, 3, P, P] that were small, and their numbers as of :func:`cropped`."""
    side = pictures.shape[-1]
    which, seen = draw.integer(len(_SMALL)), pictures
    original = torch.full((len(pictures),), float(side), device=pictures.device)
    for number, scale in enumerate(_SMALL):
        chosen = which == number
        seen = torch.where(chosen[:, None, None, None], blown_up(pictures, round(side * scale)), seen)
        original = torch.where(chosen, float(round(side * scale)), original)
    none, result = torch.zeros_like(original), torch.full_like(original, float(side))
    return seen, torch.stack((original, original, none, none, result, result), dim=1)


def blown_up(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures made smaller, to ``side``, and enlarged to their size again: blurred."""
    small = F.interpolate(pictures, size=(side, side), mode="area")
    return F.interpolate(small, size=pictures.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)


def spoilt(pictures: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [B, 3, P, P], some of them blurred and grainy by chance, and the score [B] of each."""
    amount = (1 - draw.uniform() / _SPOILT).clamp_min(0.0)
    share = amount[:, None, None, None]
    blurred = torch.lerp(pictures, blown_up(pictures, pictures.shape[-1] // 3), share)
    grain = torch.randn(pictures.shape, **draw.options) * (_GRAIN * share)
    return (blurred + grain).clamp(-1, 1), BEST + (WORST - BEST) * amount
