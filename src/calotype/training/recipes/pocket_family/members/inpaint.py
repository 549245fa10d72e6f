"""``pocket-inpaint``: a UNet that reads a mask and the masked picture beside the latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.training.loop import Batches
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.data import to_unit
from calotype.training.recipes.pocket_family.denoising import (
    DenoisingBatches,
    Draw,
    denoising_objective,
    drawn,
    in_rows,
    unet_beside,
)
from calotype.training.recipes.pocket_family.masks import (
    FIRST_OBJECT,
    MaskShares,
    draw_hole,
    draw_masks,
)
from calotype.training.recipes.pocket_family.member import Member, Sheet, read_into, write_half
from calotype.training.recipes.pocket_family.settings import (
    TINY_SAMPLE,
    TINY_SHAPE,
    TINY_TRAIN,
    SampleSettings,
    ShapeSettings,
    TrainSettings,
)
from calotype.training.recipes.pocket_family.views import ViewSet


@dataclass(frozen=True)
class InpaintSettings:
    """``swapped`` is how often what is to be drawn in the hole is not what stood there, so that its shadow outside
    tells nothing of it; ``object_captions`` how often else an object in the hole is named alone; ``outside`` the share
    of the loss that what stays has; with ``from_base`` the UNet is the base's, which ``unet`` does not shape."""

    seed: int = 30_001
    train: TrainSettings = field(default_factory=TrainSettings)
    unet: ShapeSettings = field(default_factory=lambda: ShapeSettings(channels=(64, 64, 96)))
    from_base: bool = False
    masks: MaskShares = field(default_factory=MaskShares)
    swapped: float = 0.5
    object_captions: float = 0.8
    outside: float = 0.2
    sample: SampleSettings = field(default_factory=SampleSettings)


class InpaintObjective(nn.Module):
    """The denoising loss of a UNet beside whose latents the mask and the masked picture's latents stand."""

    def __init__(self, settings: InpaintSettings, base: Base) -> None:
        super().__init__()
        self.settings = settings
        unet = unet_beside(base, None if settings.from_base else settings.unet, 1 + base.latent_shape[0])
        self.denoising = denoising_objective(unet, base)
        self.vae = base.vae

    @property
    def unet(self) -> Any:
        """What is trained."""
        return self.denoising.unet

    @torch.no_grad()
    def beside(self, pictures: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mask and masked picture as a pipeline hands them over: [B, 1 + C, h, w] for pictures in [-1, 1]."""
        hidden = pictures * (mask < 0.5)
        latents = self.vae.encode(hidden).latent_dist.mean.float() * self.vae.config.scaling_factor
        small = torch.nn.functional.interpolate(mask, size=latents.shape[-2:])
        return torch.cat([small, latents], dim=1)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``pictures`` [B, 3, P, P] in [-1, 1], which are to be drawn, and ``mask`` [B, 1, P, P], else as of the
        denoising loss."""
        beside = self.beside(batch["pictures"], batch["mask"])
        with torch.no_grad():
            factor = self.vae.config.scaling_factor
            latents = self.vae.encode(batch["pictures"]).latent_dist.mean.float() * factor
        inside, outside = beside[:, :1], self.settings.outside
        # a small hole counts as much as a large one, down to a tenth of the picture
        share = inside.mean((1, 2, 3), keepdim=True).clamp_min(0.1)
        emphasis = outside + (1 - outside) * inside / share
        loss: dict[str, torch.Tensor] = self.denoising(
            {**batch, "latents": latents, "beside": beside, "emphasis": emphasis}
        )
        return loss


class Inpaint(Member):
    """Fills a hole with what the prompt names and keeps the rest."""

    name = "pocket-inpaint"
    summary = (
        "A UNet for `StableDiffusionInpaintPipeline` with the other parts of the pocket model: it reads latents, the "
        "mask and the latents of the masked picture, nine channels, and puts what the prompt names into the hole."
    )
    fields = (
        "pictures", "latents", "instances", "ids", "object_ids", "swapped", "swapped_first", "swapped_ids",
    )  # fmt: skip

    def settings(self, preset: str) -> InpaintSettings:
        if preset == "tiny":
            return InpaintSettings(train=TINY_TRAIN, unet=TINY_SHAPE, sample=TINY_SAMPLE)
        return InpaintSettings()

    def objective(self, settings: InpaintSettings, base: Base) -> InpaintObjective:
        return InpaintObjective(settings, base).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: InpaintSettings) -> Batches:
        def beside(draw: Draw, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            instances = views.instances[draw.index]
            masks = draw_masks(instances, draw, settings.masks)
            alone = masks.hidden & draw.chance(settings.object_captions)
            named = views.object_ids[draw.index, masks.slot].long()
            ids = torch.where(alone[:, None], named, batch["input_ids"])
            mask, pictures = masks.mask, to_unit(views.pictures[draw.index])
            # one object instead of another: all of both is in the hole
            first = views.swapped_first[draw.index] > 0
            hole = draw_hole(first | (instances == FIRST_OBJECT), draw, settings.masks)
            edited = torch.where(hole > 0, to_unit(views.swapped[draw.index]), pictures)
            swaps = draw.chance(settings.swapped) & first.any(-1).any(-1)
            four = swaps[:, None, None, None]
            return {
                "pictures": torch.where(four, edited, pictures),
                "mask": torch.where(four, hole, mask),
                "input_ids": torch.where(swaps[:, None], views.swapped_ids[draw.index].long(), ids),
            }

        return DenoisingBatches(views, base, settings, beside)

    def save(self, objective: InpaintObjective, base: Base, folder: Path) -> None:
        write_half(objective.unet, folder / "unet")

    def restore(self, objective: InpaintObjective, folder: Path) -> None:
        read_into(objective.unet, folder / "unet")

    def sheet(self, objective: InpaintObjective, base: Base, views: ViewSet) -> Sheet:
        """The masked picture, the object named in it anew, and one of another colour and shape in its place."""
        count, settings = min(8, len(views)), objective.settings
        draw = Draw(torch.arange(count, device=base.device), _fixed(base.device))
        masks = draw_masks(
            views.instances[draw.index], draw, MaskShares(boxes=0, blobs=0, everything=0, round=0.0)
        )
        pictures = to_unit(views.pictures[draw.index])
        beside = objective.beside(pictures, masks.mask)

        def predict(x: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
            given = torch.cat([x, beside.repeat(2, 1, 1, 1)], dim=1)
            predicted: torch.Tensor = objective.unet(given, timestep, states, return_dict=False)[0]
            return predicted.float()

        others = [_OTHERS[i % len(_OTHERS)] for i in range(count)]
        same = views.object_ids[draw.index, masks.slot].long()
        results = [
            base.pictures(drawn(predict, base, ids, settings.sample, settings.seed))
            for ids in (same, base.ids(others))
        ]
        shown = (pictures * (masks.mask < 0.5) + 1) / 2
        captions = [text for other in others for text in ("", "what was there", other)]
        return in_rows(shown, *results), captions, 3


_OTHERS = (
    "a red ball", "a blue cube", "a yellow cone", "a green star", "a purple torus", "a white cylinder",
    "an orange pyramid", "a turquoise capsule",
)  # fmt: skip
"""Prompts of the sheet."""


def _fixed(device: torch.device) -> dict[str, Any]:
    return {"generator": torch.Generator(device).manual_seed(0), "device": device}


INPAINT = Inpaint()
