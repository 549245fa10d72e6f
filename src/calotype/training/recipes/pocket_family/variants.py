"""Views in other forms, cropped, blown up and spoilt, encoded once and not in each batch that they are in."""

from __future__ import annotations

from typing import Any

import torch

from calotype.training.gradients import precision
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.data import to_unit
from calotype.training.recipes.pocket_family.degraded import blown_up_at_random, cropped, spoilt
from calotype.training.recipes.pocket_family.denoising import Draw
from calotype.training.recipes.pocket_family.masks import FIRST_OBJECT
from calotype.training.recipes.pocket_family.views import ViewSet

_PART = 64
"""Pictures encoded at a time."""


def off_middle(instances: torch.Tensor) -> torch.Tensor:
    """How far to the side, from 0 to 1, the pixels of objects are on average [B], by ``instances`` [B, P, P]."""
    columns = (instances >= FIRST_OBJECT).float().sum(1)
    aside = torch.linspace(-1, 1, columns.shape[-1], device=columns.device).abs()
    return (columns * aside).sum(1) / columns.sum(1).clamp_min(1)


class Variants:
    """Latents of the forms of each view, [N, C, h, w] each, and the numbers that tell what was done.

    ``sizes`` [N, 6] are as :func:`cropped` has them; ``scores`` [N]. Crops are made of the half of the views whose
    objects stand nearest to the middle, ``crops`` of each: those at the edge of a picture are left out of many crops,
    and where they then are would hardly depend on the crop. ``crop_views`` are the views that they are of, int64 [M].
    """

    def __init__(self, views: ViewSet, base: Base, crops: int, seed: int) -> None:
        self._views, self._base, self._crops, self._seed = views, base, crops, seed
        self._made = 0
        self._room: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        """``crops``, ``crop_sizes``, ``crop_views`` [M, …], else ``small``, ``small_sizes``, ``spoilt``, ``scores``."""
        return self._room[name]

    def look(self) -> None:
        """Make those of the views that have come since."""
        if self._made == len(self._views):
            return
        parts = [self._room] if self._room else []
        while self._made < len(self._views):
            rows = slice(self._made, min(self._made + _PART, len(self._views)))
            parts.append(self._part(rows))
            self._made = rows.stop
        self._room = {name: torch.cat([part[name] for part in parts]) for name in parts[-1]}

    @torch.no_grad()
    def _part(self, rows: slice) -> dict[str, torch.Tensor]:
        device = self._base.device
        generator = torch.Generator(device).manual_seed(self._seed + rows.start)
        options: dict[str, Any] = {"generator": generator, "device": device}
        pictures = to_unit(self._views.pictures[rows])
        middling = off_middle(self._views.instances[rows]).argsort()[: (len(pictures) + 1) // 2]
        repeated = middling.repeat_interleave(self._crops)
        crops, crop_sizes = cropped(pictures[repeated], Draw(repeated, options))
        draw = Draw(torch.arange(len(pictures), device=device), options)
        small, small_sizes = blown_up_at_random(pictures, draw)
        worse, scores = spoilt(pictures, draw)
        return {
            "crops": self._encoded(crops), "crop_sizes": crop_sizes, "crop_views": repeated + rows.start,
            "small": self._encoded(small), "small_sizes": small_sizes,
            "spoilt": self._encoded(worse), "scores": scores,
        }  # fmt: skip

    def _encoded(self, pictures: torch.Tensor) -> torch.Tensor:
        device = self._base.device
        with precision(device, torch.bfloat16 if device.type == "cuda" else None):
            return self._base.latents((pictures + 1) / 2).half()
