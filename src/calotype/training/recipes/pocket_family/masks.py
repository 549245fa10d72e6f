"""Masks for inpainting: about one object, boxes and blobs anywhere, and all of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calotype.training.recipes.pocket_family.denoising import Draw

OBJECTS = 3
FIRST_OBJECT = 2
"""The number of object 0 among the instances."""
_LEAST = 1 / 500
"""An object of fewer of a picture's pixels is not masked by itself."""


@dataclass(frozen=True)
class MaskShares:
    """How many masks are of which kind; what is left over is about one object."""

    boxes: float = 0.12
    blobs: float = 0.12
    everything: float = 0.08
    round: float = 0.25
    """of the masks about an object, those that are ellipses"""
    margins: tuple[float, float] = (0.05, 0.7)
    """how far a mask reaches beyond its object on each side, in parts of the object's extent there"""


@dataclass(frozen=True)
class Masks:
    """Masks of a batch and whether each hides one object."""

    mask: torch.Tensor
    """[B, 1, P, P], 1 in the hole"""
    slot: torch.Tensor
    """int64 [B]: an object that is in the hole"""
    hidden: torch.Tensor
    """bool [B]: whether there is one"""


def draw_masks(instances: torch.Tensor, draw: Draw, shares: MaskShares) -> Masks:
    """Masks for pictures whose pixels show ``instances`` (uint8 [B, P, P])."""
    shown = torch.stack([instances == FIRST_OBJECT + k for k in range(OBJECTS)], dim=1)
    area = shown.flatten(2).sum(2)
    visible = area >= _LEAST * instances[0].numel()
    # one of the visible objects, each alike
    about = torch.where(visible, draw.uniform(OBJECTS), -1.0).argmax(1)
    chosen = shown[torch.arange(len(shown), device=shown.device), about]
    kind = draw.uniform()[:, None, None]
    boxes, blobs = shares.boxes, shares.boxes + shares.blobs
    mask = _around(chosen, draw, shares)
    mask = torch.where(kind < blobs, _blobs(instances, draw), mask)
    mask = torch.where(kind < boxes, _box(instances, draw), mask)
    mask = torch.where(kind > 1 - shares.everything, torch.ones_like(mask), mask)
    inside = (shown & mask[:, None]).flatten(2).sum(2)
    hides = visible & (inside > 0.75 * area)
    # a mask about an object names that one, any other mask one that it happens to hide
    other = torch.where(hides, draw.uniform(OBJECTS), -1.0).argmax(1)
    by_chance = (kind[:, 0, 0] < blobs) | (kind[:, 0, 0] > 1 - shares.everything)
    slot = torch.where(by_chance, other, about)
    return Masks(mask[:, None].float(), slot, hides.gather(1, slot[:, None])[:, 0])


def draw_hole(shown: torch.Tensor, draw: Draw, shares: MaskShares) -> torch.Tensor:
    """Masks [B, 1, P, P] about all that is shown in bool [B, P, P]."""
    return _around(shown, draw, shares)[:, None].float()


def _grid(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [1, P, 1] and columns [1, 1, P] of pixel centres in [0, 1]."""
    side = like.shape[-1]
    line = (torch.arange(side, device=like.device) + 0.5) / side
    return line[None, :, None], line[None, None, :]


def _extent(shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last of the lines [B, P] in which something is shown, in [0, 1], each [B, 1, 1]."""
    side = shown.shape[-1]
    at = torch.arange(side, device=shown.device)
    first = torch.where(shown, at, side).amin(1)
    last = torch.where(shown, at + 1, 0).amax(1)
    return first[:, None, None] / side, last[:, None, None] / side


def _around(shown: torch.Tensor, draw: Draw, shares: MaskShares) -> torch.Tensor:
    """Boxes or ellipses about what is shown (bool [B, P, P]), larger than it by chance on each side."""
    rows, columns = _grid(shown)
    margins = draw.uniform(4, low=shares.margins[0], high=shares.margins[1])[:, :, None, None].unbind(1)
    (top, bottom), (left, right) = _extent(shown.any(2)), _extent(shown.any(1))
    height, width = (bottom - top).clamp_min(0.05), (right - left).clamp_min(0.05)
    top, bottom = top - margins[0] * height, bottom + margins[1] * height
    left, right = left - margins[2] * width, right + margins[3] * width
    box = (rows > top) & (rows < bottom) & (columns > left) & (columns < right)
    # the ellipse about the box, so that it hides the object too
    y = (2 * rows - top - bottom) / (bottom - top)
    x = (2 * columns - left - right) / (right - left)
    return torch.where(draw.chance(shares.round)[:, None, None], x * x + y * y < 1.6, box)


def _box(like: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Boxes anywhere, their sides a fifth to four fifths of the picture's."""
    rows, columns = _grid(like)
    size = draw.uniform(2, low=0.2, high=0.8)[:, :, None, None]
    corner = draw.uniform(2)[:, :, None, None] * (1 - size)
    (top, left), (height, width) = corner.unbind(1), size.unbind(1)
    return (rows > top) & (rows < top + height) & (columns > left) & (columns < left + width)


def _blobs(like: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Where smooth noise is high: islands and bays."""
    noise = torch.randn((len(like), 1, 5, 5), **draw.options)
    smooth = torch.nn.functional.interpolate(noise, size=like.shape[-2:], mode="bicubic")[:, 0]
    return smooth > draw.uniform(low=-0.1, high=0.6)[:, None, None]
