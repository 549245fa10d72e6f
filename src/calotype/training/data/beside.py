"""What batches have beside pictures and captions: control pictures, holes with what is around them, guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from calotype.core.errors import InputError
from calotype.diffusion.codec import moments
from calotype.training.data.batches import Piece
from calotype.training.data.folder import Example, open_picture
from calotype.training.data.sizes import cut

_SHAPE = 0.02
"""How much the sides' ratios of a picture and the one beside it may differ."""
_WEIGHTS = torch.tensor([1.0, 2.0, 2.0])
"""How often a hole is made of rectangles, ellipses and strokes of a brush."""


def check_shapes(examples: Sequence[Example]) -> None:
    """``InputError`` for a picture whose second picture has other proportions: cut alike they would not fit."""
    for example in examples:
        if example.beside is None:
            continue
        first, second = open_picture(example.path), open_picture(example.beside)
        ratio = (first.width / first.height) / (second.width / second.height)
        if abs(ratio - 1) > _SHAPE:
            raise InputError(
                f"{example.path} is {first.width} x {first.height} and {example.beside}, which belongs to it, "
                f"{second.width} x {second.height}: they need the same proportions."
            )


def control_pictures(pieces: Sequence[Piece], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """``controlnet_cond`` [B, 3, H, W] in [0, 1]: the pictures beside, cut as the samples are."""
    pixels = []
    for example, size, flip, place in pieces:
        assert example.beside is not None
        pixels.append(cut(open_picture(example.beside), size, place, flip).pixels)
    return {"controlnet_cond": (torch.stack(pixels) + 1) / 2}


@dataclass(frozen=True)
class Guidances:
    """``guidance`` [B]: scales that a teacher is asked for, evenly drawn from a range."""

    least: float
    most: float

    def __call__(self, pieces: Sequence[Piece], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The scales of a batch."""
        drawn = torch.rand(len(pieces), generator=generator)
        return {"guidance": self.least + (self.most - self.least) * drawn}


@dataclass(frozen=True)
class Holes:
    """``beside`` [B, 1 + C, h, w]: a mask, 1 where something new goes, and latents of what is around it.

    ``whole`` is how often all of a picture is to be new, in [0, 1].
    """

    vae: Any
    whole: float

    @torch.no_grad()
    def __call__(self, pieces: Sequence[Piece], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The holes of a batch."""
        pixels = torch.stack(
            [cut(open_picture(p.example.path), p.size, p.place, p.flip).pixels for p in pieces]
        )
        mask = torch.stack([hole(*p.size, self.whole, generator) for p in pieces])
        around = pixels * (mask < 0.5)
        found = [moments(self.vae, one[None].to(self.vae.device, self.vae.dtype)) for one in around]
        mean, std = (torch.cat(part).float().cpu() for part in zip(*found, strict=True))
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        return {"beside": torch.cat([F.interpolate(mask, size=latents.shape[-2:]), latents], dim=1)}


def hole(height: int, width: int, whole: float, generator: torch.Generator) -> torch.Tensor:
    """A mask [1, height, width] of zeros and ones: all of it, or one to four rectangles, ellipses or strokes."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand(1, generator=generator).item()

    if draw(0, 1) < whole:
        return torch.ones(1, height, width)
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    inside = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(int(draw(1, 5))):
        kind = int(torch.multinomial(_WEIGHTS, 1, generator=generator))
        cy, cx, ry, rx = draw(0, 1), draw(0, 1), draw(0.08, 0.35), draw(0.08, 0.35)
        dy, dx = y - cy, x - cx
        if kind == 0:
            inside |= (dy.abs() < ry) & (dx.abs() < rx)
        elif kind == 1:
            inside |= (dy / ry).square() + (dx / rx).square() < 1
        else:  # all that is near the line from one point to another
            ey, ex = draw(0, 1) - cy, draw(0, 1) - cx
            along = ((dy * ey + dx * ex) / max(ey * ey + ex * ex, 1e-6)).clamp(0, 1)
            inside |= (dy - along * ey).square() + (dx - along * ex).square() < (0.35 * min(ry, rx)) ** 2
    return inside[None].float()
