"""``pocket-unconditional``: a UNet on pixels that draws scenes of the pocket world from noise alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from calotype.core.errors import InputError
from calotype.training.loop import Batches
from calotype.training.objectives import stratified_timesteps
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.data import to_unit
from calotype.training.recipes.pocket_family.denoising import draw_views
from calotype.training.recipes.pocket_family.member import Member, Sheet, read_into
from calotype.training.recipes.pocket_family.settings import TINY_TRAIN, TrainSettings
from calotype.training.recipes.pocket_family.views import ViewSet
from calotype.training.unconditional import UnconditionalObjective

_STEPS = 50
"""Of the sheet's pictures."""


@dataclass(frozen=True)
class PixelShape:
    """A UNet over pixels; ``attention`` says in which stages pixels attend to one another."""

    channels: tuple[int, ...] = (32, 64, 64)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    head_width: int = 32
    groups: int = 8


@dataclass(frozen=True)
class UnconditionalSettings:
    """``shrink`` is how many pixels of a view, across, one of its pictures is the mean of."""

    seed: int = 30_012
    train: TrainSettings = field(default_factory=lambda: TrainSettings(batch=256, warmup=200))
    unet: PixelShape = field(default_factory=PixelShape)
    shrink: int = 2


def build_pixel_unet(shape: PixelShape, side: int) -> Any:
    """A ``UNet2DModel`` for pictures of ``side`` pixels."""
    from calotype import UNet2DModel

    down = tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in shape.attention)
    up = tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(shape.attention))
    return UNet2DModel(
        sample_size=side,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers,
        attention_head_dim=shape.head_width,
        norm_num_groups=shape.groups,
    )


def build_pixel_scheduler() -> Any:
    """DDIM on a cosine table (https://arxiv.org/abs/2102.09672), which ends in noise alone: what is predicted is v."""
    from calotype import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )


class Unconditional(Member):
    """Draws scenes from noise alone."""

    name = "pocket-unconditional"
    summary = (
        "A whole `DDIMPipeline` with a `UNet2DModel` on pixels: scenes of the pocket world from noise alone, without a "
        "prompt and without an autoencoder."
    )
    fields = ("pictures",)

    def settings(self, preset: str) -> UnconditionalSettings:
        if preset == "tiny":
            shape = PixelShape(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
            return UnconditionalSettings(train=TINY_TRAIN, unet=shape)
        return UnconditionalSettings()

    def objective(self, settings: UnconditionalSettings, base: Base) -> UnconditionalObjective:
        side, rest = divmod(base.pixels, settings.shrink)
        least = 2 ** (len(settings.unet.channels) - 1)
        if rest or side % least:
            raise InputError(
                f"Pictures of {base.pixels} pixels can't be shrunk by {settings.shrink} to a multiple of {least}."
            )
        scheduler = build_pixel_scheduler()
        return UnconditionalObjective(
            build_pixel_unet(settings.unet, side), scheduler.alphas_cumprod, scheduler.config.prediction_type
        ).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: UnconditionalSettings) -> Batches:
        levels = int(build_pixel_scheduler().config.num_train_timesteps)

        def batch(number: int) -> dict[str, torch.Tensor]:
            draw = draw_views(views, number, settings)
            pictures = F.avg_pool2d(to_unit(views.pictures[draw.index]), settings.shrink)
            mirrored = draw.chance(0.5)[:, None, None, None]
            return {
                "images": torch.where(mirrored, pictures.flip(-1), pictures),
                "noise": torch.randn(pictures.shape, **draw.options),
                "timesteps": stratified_timesteps(torch.rand((1,), **draw.options), len(pictures), levels),
            }

        return batch

    def save(self, objective: UnconditionalObjective, base: Base, folder: Path) -> None:
        from calotype import DDIMPipeline

        # a copy, because the model is being trained
        half = copy.deepcopy(objective.unet).half().to(memory_format=torch.contiguous_format).cpu()
        DDIMPipeline(unet=half, scheduler=build_pixel_scheduler()).save_pretrained(folder)

    def restore(self, objective: UnconditionalObjective, folder: Path) -> None:
        read_into(objective.unet, folder / "unet")

    def sheet(self, objective: UnconditionalObjective, base: Base, views: ViewSet) -> Sheet:
        """Pictures of fixed noise."""
        from calotype import DDIMPipeline

        pipe: Any = DDIMPipeline(unet=objective.unet, scheduler=build_pixel_scheduler())
        pipe.set_progress_bar_config(disable=True)
        count = 32
        made = pipe(
            batch_size=count,
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=_STEPS,
            output_type="pt",
        )
        return made.images.float(), [""] * count, 8


UNCONDITIONAL = Unconditional()
