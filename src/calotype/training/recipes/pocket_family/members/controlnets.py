"""``pocket-controlnet-…``: ControlNets for the pocket model's own UNet, which stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from calotype.pocket.labels import painted
from calotype.training.controlled import Controlled, controlnet_of
from calotype.training.loop import Batches
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket_family.conditions import canny_lines, relative_disparity
from calotype.training.recipes.pocket_family.denoising import (
    DenoisingBatches,
    Draw,
    MemberObjective,
    drawn,
    in_rows,
    words,
)
from calotype.training.recipes.pocket_family.member import Member, Sheet, read_into, write_half
from calotype.training.recipes.pocket_family.settings import (
    TINY_SAMPLE,
    TINY_TRAIN,
    SampleSettings,
    TrainSettings,
)
from calotype.training.recipes.pocket_family.views import ViewSet

_TRAIN = TrainSettings(batch=128, learning_rate=5e-4, warmup=50, ema_decay=0.998, caption_dropout=0.4)
"""Captions are often left out, so that the control is listened to."""


@dataclass(frozen=True)
class ControlNetSettings:
    """``embedding`` are the widths of the convolutions that read the picture, the first and the last; the factor
    between the sizes of picture and latents says how many there are. Without ``attention`` it is convolutions alone:
    what a picture shows where needs no more."""

    seed: int
    train: TrainSettings = _TRAIN
    embedding: tuple[int, int] = (16, 64)
    attention: bool = False
    sample: SampleSettings = field(default_factory=SampleSettings)


def embedding_widths(base: Base, ends: tuple[int, int]) -> tuple[int, ...]:
    """Widths from ``ends[0]``, doubled at each halving but never above ``ends[1]``, down to the latents' size."""
    halvings = (base.pixels // base.latent_shape[-1]).bit_length() - 1
    return tuple(min(ends[0] << i, ends[1]) for i in range(halvings + 1))


class PocketControlNet(Member):
    """A ControlNet that reads ``picture`` of the views' ``field``."""

    def __init__(
        self, kind: str, seed: int, field: str, about: str, picture: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.name, self._seed, self._field, self._picture = f"pocket-controlnet-{kind}", seed, field, picture
        self.summary = f"A `ControlNetModel` for the pocket model whose control pictures are {about}."
        self.fields = tuple(dict.fromkeys(("latents", "ids", "pictures", field)))

    def settings(self, preset: str) -> ControlNetSettings:
        if preset == "tiny":
            return ControlNetSettings(self._seed, TINY_TRAIN, embedding=(4, 8), sample=TINY_SAMPLE)
        return ControlNetSettings(self._seed)

    def objective(self, settings: ControlNetSettings, base: Base) -> MemberObjective:
        controlnet = controlnet_of(base.unet, embedding_widths(base, settings.embedding), settings.attention)
        return MemberObjective(Controlled(base.unet, controlnet), base, settings).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: ControlNetSettings) -> Batches:
        def beside(draw: Draw, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"controlnet_cond": self._picture(getattr(views, self._field)[draw.index])}

        return DenoisingBatches(views, base, settings, beside)

    def save(self, objective: MemberObjective, base: Base, folder: Path) -> None:
        write_half(objective.unet.controlnet, folder / "controlnet")

    def restore(self, objective: MemberObjective, folder: Path) -> None:
        read_into(
            objective.unet.controlnet, folder / "controlnet", leave=r"\.attentions\.|^mid_block\.resnets\.1\."
        )

    def sheet(self, objective: MemberObjective, base: Base, views: ViewSet) -> Sheet:
        """The control, the rendered picture, what is drawn for its caption, and for that of the next row's."""
        count, settings = min(8, len(views)), objective.settings
        control = self._picture(getattr(views, self._field)[:count])
        ids = views.ids[:count, 0].long()

        def predict(x: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
            given = {"controlnet_cond": control.repeat(2, 1, 1, 1), "return_dict": False}
            predicted: torch.Tensor = objective.unet(x, timestep, states, **given)[0]
            return predicted.float()

        others = ids.roll(-1, 0)
        results = [
            base.pictures(drawn(predict, base, each, settings.sample, settings.seed))
            for each in (ids, others)
        ]
        pairs = zip(words(base, ids), words(base, others), strict=True)
        captions = [text for pair in pairs for text in ("control", "rendered", *pair)]
        return in_rows(control, views.pictures[:count] / 255, *results), captions, 4


def _lines(pictures: torch.Tensor) -> torch.Tensor:
    return canny_lines(pictures).expand(-1, 3, -1, -1)


def _grey(depth: torch.Tensor) -> torch.Tensor:
    return relative_disparity(depth).expand(-1, 3, -1, -1)


CANNY = PocketControlNet(
    "canny", 30_011, "pictures", "edges, white on black, as `calotype.annotators.canny` draws them", _lines
)
DEPTH = PocketControlNet(
    "depth", 30_012, "depth", "inverse depths, from black for the farthest to white for the nearest", _grey
)
SEGMENTATION = PocketControlNet(
    "segmentation", 30_013, "labels",
    "maps of what each pixel shows, sky, floor or a shape, in the colours of `calotype.pocket.labels.PALETTE`",
    painted,
)  # fmt: skip
