"""``pocket-depth``: a UNet that reads the depth of the scene beside the latents."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from calotype.training.loop import Batches
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket_family.conditions import relative_disparity
from calotype.training.recipes.pocket_family.denoising import (
    DenoisingBatches,
    Draw,
    MemberObjective,
    drawn,
    in_rows,
    unet_beside,
    words,
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
class DepthSettings:
    """Numbers of this member; with ``from_base`` the UNet is the base's, which ``unet`` does not shape."""

    seed: int = 30_002
    train: TrainSettings = field(default_factory=TrainSettings)
    unet: ShapeSettings = field(default_factory=ShapeSettings)
    from_base: bool = False
    sample: SampleSettings = field(default_factory=SampleSettings)


def depth_beside(depth: torch.Tensor, base: Base) -> torch.Tensor:
    """Depth [B, P, P] as the pipeline hands it over: one over it at the latents' size, from -1 to 1."""
    return 2 * relative_disparity(depth, base.latent_shape[-1]) - 1


class Depth(Member):
    """Draws what the prompt says where the depth says."""

    name = "pocket-depth"
    summary = (
        "A UNet for `StableDiffusionDepth2ImgPipeline` with the other parts of the pocket model: it reads latents and "
        "the relative inverse depth of the scene, five channels, and draws in it what the prompt says."
    )
    fields = ("latents", "depth", "ids")

    def settings(self, preset: str) -> DepthSettings:
        if preset == "tiny":
            return DepthSettings(train=TINY_TRAIN, unet=TINY_SHAPE, sample=TINY_SAMPLE)
        return DepthSettings()

    def objective(self, settings: DepthSettings, base: Base) -> MemberObjective:
        unet = unet_beside(base, None if settings.from_base else settings.unet, 1)
        return MemberObjective(unet, base, settings).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: DepthSettings) -> Batches:
        def beside(draw: Draw, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"beside": depth_beside(views.depth[draw.index], base)}

        return DenoisingBatches(views, base, settings, beside)

    def save(self, objective: MemberObjective, base: Base, folder: Path) -> None:
        write_half(objective.unet, folder / "unet")

    def restore(self, objective: MemberObjective, folder: Path) -> None:
        read_into(objective.unet, folder / "unet")

    def sheet(self, objective: MemberObjective, base: Base, views: ViewSet) -> Sheet:
        """The depth, what is drawn for the scene's caption, and for that of the scene in the next row."""
        count, settings = min(8, len(views)), objective.settings
        depth, ids = views.depth[:count], views.ids[:count, 0].long()
        beside = depth_beside(depth, base)

        def predict(x: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
            given = torch.cat([x, beside.repeat(2, 1, 1, 1)], dim=1)
            predicted: torch.Tensor = objective.unet(given, timestep, states, return_dict=False)[0]
            return predicted.float()

        others = ids.roll(-1, 0)
        results = [
            base.pictures(drawn(predict, base, each, settings.sample, settings.seed))
            for each in (ids, others)
        ]
        shown = relative_disparity(depth).expand(-1, 3, -1, -1)
        pairs = zip(words(base, ids), words(base, others), strict=True)
        return in_rows(shown, *results), [text for pair in pairs for text in ("depth", *pair)], 3


DEPTH = Depth()
