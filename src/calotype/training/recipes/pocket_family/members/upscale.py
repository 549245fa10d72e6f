"""``pocket-upscale``: a UNet that reads a picture a quarter as large beside the latents."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from calotype.families.stable_diffusion_variants import UPSCALER_SCALING_FACTOR
from calotype.training.loop import Batches
from calotype.training.objectives import diffuse
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.data import to_unit
from calotype.training.recipes.pocket_family.denoising import (
    DenoisingBatches,
    Draw,
    MemberObjective,
    drawn,
    in_rows,
    unet_beside,
)
from calotype.training.recipes.pocket_family.derived import read_derived, train_only, write_derived
from calotype.training.recipes.pocket_family.member import Member, Sheet
from calotype.training.recipes.pocket_family.settings import (
    TINY_SAMPLE,
    TINY_TRAIN,
    SampleSettings,
    TrainSettings,
)
from calotype.training.recipes.pocket_family.views import ViewSet
from calotype.training.vae import fold_latents

USUAL_LEVEL = 20
"""The noise level that the pipeline has by default."""


@dataclass(frozen=True)
class UpscaleSettings:
    """``max_noise_level`` is the pipeline's; half of the pictures are noised to at most ``usual_levels``. The UNet is
    the base's, of which ``trained`` are the parameters that are trained, by the beginning of their names."""

    seed: int = 30_003
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(learning_rate=8e-4, ema_decay=0.998, caption_dropout=0.3)
    )
    trained: tuple[str, ...] = (
        "conv_in", "conv_out", "class_embedding", "time_embedding", r".*norm", r"down_blocks\.0\.resnets",
        r"up_blocks\.2\.resnets",
    )  # fmt: skip
    max_noise_level: int = 350
    usual_levels: int = 60
    sample: SampleSettings = field(default_factory=lambda: SampleSettings(guidance=1.0))


def build_low_res_scheduler() -> Any:
    """What noises the small pictures."""
    from calotype import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear"
    )


@torch.no_grad()
def in_upscalers_unit(vae: Any) -> Any:
    """A copy of an autoencoder whose ``scaling_factor`` is the one that the pipeline insists on.

    Its latents times that factor are what they were times the old one, and decode to the same.
    """
    other = copy.deepcopy(vae)
    scale = torch.full((other.config.latent_channels,), UPSCALER_SCALING_FACTOR, dtype=torch.float64)
    fold_latents(
        other, torch.zeros_like(scale).to(other.device), (scale / vae.config.scaling_factor).to(other.device)
    )
    other.register_to_config(scaling_factor=UPSCALER_SCALING_FACTOR)
    return other


def shrunk(pictures: torch.Tensor, side: int, smooth: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, P, P] at ``side``: bicubically, smoothed before, or where ``smooth`` [B] says so by averages."""
    size = (side, side)
    averaged = F.interpolate(pictures, size=size, mode="area")
    bicubic = F.interpolate(pictures, size=size, mode="bicubic", antialias=True, align_corners=False)
    return torch.where(smooth[:, None, None, None], averaged, bicubic.clamp(-1, 1))


class Upscale(Member):
    """Draws the large picture of a small one."""

    name = "pocket-upscale"
    begins_with = "the pocket model's UNet"
    summary = (
        "A UNet for `StableDiffusionUpscalePipeline` with the pocket model's text encoder, and its autoencoder in the "
        "unit of latents that this pipeline insists on. The UNet reads latents and a picture a quarter as large, seven "
        "channels, and is told how noisy that picture is. It was the pocket model's; tensors that still are are not "
        'repeated here: `calotype.load("pocket-upscale").save_pretrained("DIR")` writes all of them.'
    )
    fields = ("pictures", "latents", "ids")

    def settings(self, preset: str) -> UpscaleSettings:
        if preset == "tiny":
            return UpscaleSettings(train=TINY_TRAIN, sample=TINY_SAMPLE)
        return UpscaleSettings()

    def objective(self, settings: UpscaleSettings, base: Base) -> MemberObjective:
        unet = unet_beside(base, None, 3, num_class_embeds=settings.max_noise_level + 1)
        train_only(unet, settings.trained)
        return MemberObjective(unet, base, settings).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: UpscaleSettings) -> Batches:
        table = build_low_res_scheduler().alphas_cumprod.float().to(base.device)

        def beside(draw: Draw, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            pictures = to_unit(views.pictures[draw.index])
            small = shrunk(pictures, base.latent_shape[-1], draw.chance(0.5))
            level = torch.where(
                draw.chance(0.5),
                draw.integer(settings.usual_levels + 1),
                draw.integer(settings.max_noise_level + 1),
            )
            noise = torch.randn(small.shape, **draw.options)
            return {"beside": diffuse(small, noise, table[level]), "class_labels": level}

        return DenoisingBatches(views, base, settings, beside)

    def save(self, objective: MemberObjective, base: Base, folder: Path) -> None:
        write_derived(objective.unet, base.unet, base, folder / "unet")
        write_derived(in_upscalers_unit(base.vae), base.vae, base, folder / "vae")
        build_low_res_scheduler().save_pretrained(folder / "low_res_scheduler")

    def restore(self, objective: MemberObjective, folder: Path) -> None:
        read_derived(objective.unet, folder / "unet")

    def sheet(self, objective: MemberObjective, base: Base, views: ViewSet) -> Sheet:
        """The small picture, what is drawn of it without a prompt, and the rendered one."""
        count, settings = min(8, len(views)), objective.settings
        pictures = to_unit(views.pictures[:count])
        small = shrunk(
            pictures, base.latent_shape[-1], torch.zeros(count, dtype=torch.bool, device=base.device)
        )
        level = torch.full((2 * count,), USUAL_LEVEL, device=base.device)
        noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(0)).to(base.device)
        table = build_low_res_scheduler().alphas_cumprod.float().to(base.device)
        noisy = diffuse(small, noise, table[level[:count]])

        def predict(x: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
            given = torch.cat([x, noisy.repeat(2, 1, 1, 1)], dim=1)
            predicted: torch.Tensor = objective.unet(
                given, timestep, states, class_labels=level, return_dict=False
            )[0]
            return predicted.float()

        ids = base.ids([""] * count)
        latents = drawn(predict, base, ids, settings.sample, settings.seed)
        large = F.interpolate((small + 1) / 2, size=pictures.shape[-2:], mode="nearest")
        return (
            in_rows(large, base.pictures(latents), (pictures + 1) / 2),
            ["given", "drawn", "rendered"] * count,
            3,
        )


UPSCALE = Upscale()
