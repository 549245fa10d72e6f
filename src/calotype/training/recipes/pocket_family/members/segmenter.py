"""``pocket-segmenter``: not a member for users but a judge, which says of each pixel what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from calotype.core.errors import InputError
from calotype.pocket.labels import painted
from calotype.pocket.segmenter import FILE, Segmenter, load_segmenter, save_segmenter
from calotype.training.loop import Batches
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket_family.denoising import Draw, draw_views, in_rows
from calotype.training.recipes.pocket_family.member import Member, Sheet
from calotype.training.recipes.pocket_family.settings import TINY_TRAIN, TrainSettings
from calotype.training.recipes.pocket_family.views import ViewSet

_FULL = TrainSettings(learning_rate=2e-3, ema_decay=0.998)


@dataclass(frozen=True)
class SegmenterSettings:
    seed: int = 30_019
    train: TrainSettings = _FULL
    widths: tuple[int, int, int] = (32, 64, 96)


class SegmenterObjective(nn.Module):
    """The cross entropy of what pixels show."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``pictures`` [B, 3, P, P] in [0, 1] and ``labels`` int64 [B, P, P]."""
        logits = self.segmenter(batch["pictures"]).float()
        return {"loss": F.cross_entropy(logits, batch["labels"])}


def disturbed(pictures: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Pictures in [0, 1] as a generator might have drawn them: soft, noisy, slightly off in tone."""
    coarse = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2.0, mode="bilinear")
    softness = draw.uniform(1, 1, 1) * draw.chance(0.5)[:, None, None, None]
    pictures = torch.lerp(pictures, coarse, softness)
    pictures = pictures.clamp(1e-3, 1) ** draw.uniform(1, 1, 1, low=0.9, high=1.1)
    pictures = pictures * draw.uniform(3, 1, 1, low=0.95, high=1.05)
    noise = torch.randn(pictures.shape, **draw.options)
    # errors of an autoencoder are smooth: half of the noise is
    noise = noise + 2.0 * F.interpolate(noise[:, :, ::4, ::4], scale_factor=4.0, mode="bilinear")
    return (pictures + noise * draw.uniform(1, 1, 1, high=0.03)).clamp(0, 1)


class SegmenterMember(Member):
    """Reads what :data:`calotype.pocket.labels.SEGMENTS` each pixel shows."""

    name = "pocket-segmenter"
    summary = (
        "A network of 0.4 M parameters that says of each pixel of a picture what it shows. It judges pictures that "
        "were drawn from maps of segments and is no part of a pipeline."
    )
    fields = ("pictures", "labels")

    def settings(self, preset: str) -> SegmenterSettings:
        if preset == "tiny":
            return SegmenterSettings(train=TINY_TRAIN, widths=(8, 8, 16))
        return SegmenterSettings()

    def objective(self, settings: SegmenterSettings, base: Base) -> SegmenterObjective:
        return SegmenterObjective(Segmenter(settings.widths)).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: SegmenterSettings) -> Batches:
        def batch(number: int) -> dict[str, torch.Tensor]:
            draw = draw_views(views, number, settings)
            pictures = views.pictures[draw.index].float() / 255
            return {"pictures": disturbed(pictures, draw), "labels": views.labels[draw.index].long()}

        return batch

    def save(self, objective: SegmenterObjective, base: Base, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_segmenter(objective.segmenter, folder / FILE)

    def restore(self, objective: SegmenterObjective, folder: Path) -> None:
        stored = load_segmenter(folder / FILE).state_dict()
        try:
            objective.segmenter.load_state_dict(stored)
        except RuntimeError as error:
            raise InputError(f"The segmenter in {folder} is not of this preset's sizes.") from error

    def sheet(self, objective: Any, base: Base, views: ViewSet) -> Sheet:
        """The picture, what its pixels show and what is read in it."""
        pictures = views.pictures[:8].float() / 255
        read = objective.segmenter(pictures).float().argmax(1)
        rows = in_rows(pictures, painted(views.labels[:8]), painted(read))
        return rows, ["", "what it shows", "what is read"] * len(pictures), 3


SEGMENTER = SegmenterMember()
