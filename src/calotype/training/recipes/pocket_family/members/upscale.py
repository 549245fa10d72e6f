"""``pocket-upscale``: a UNet that reads a picture a quarter as large beside the latents."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from calotype.families.stable_diffusion_variants import UPSCALER_SCALING_FACTOR
from calotype.training.loop import Batches
from calotype.training.objectives import diffuse
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
from calotype.training.vae import fold_latents, gradient_loss

USUAL_LEVEL = 20
"""The noise level that the pipeline has by default."""


@dataclass(frozen=True)
class UpscaleSettings:
    """``max_noise_level`` is the pipeline's; half of the pictures are noised to at most ``usual_levels``. The
    autoencoder has stages of ``vae_channels``, learns from ``vae_share`` of each batch and decodes latents to which up
    to ``jitter`` of noise was added."""

    seed: int = 30_003
    train: TrainSettings = field(default_factory=lambda: TrainSettings(caption_dropout=0.3))
    unet: ShapeSettings = field(
        default_factory=lambda: ShapeSettings(
            channels=(32, 48, 48), attention=(False, False, True), head_width=16, groups=16, time_width=128
        )
    )
    vae_channels: tuple[int, ...] = (24, 48, 48)
    vae_groups: int = 8
    vae_share: float = 0.25
    jitter: float = 0.1
    max_noise_level: int = 350
    usual_levels: int = 60
    sample: SampleSettings = field(default_factory=lambda: SampleSettings(guidance=2.0))


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


def build_small_vae(settings: UpscaleSettings, base: Base) -> Any:
    """An ``AutoencoderKL`` for the base's latents, narrower than the base's."""
    given = base.vae.config
    return type(base.vae).from_config(
        {
            **given,
            "block_out_channels": settings.vae_channels,
            "norm_num_groups": settings.vae_groups,
            "mid_block_add_attention": False,
        }
    )


class UpscaleObjective(nn.Module):
    """The denoising loss, and beside it that of an autoencoder whose decoder learns to draw pictures of the base's
    latents and whose encoder learns those latents."""

    def __init__(self, unet: nn.Module, settings: UpscaleSettings, base: Base) -> None:
        super().__init__()
        self.settings = settings
        self.denoising = denoising_objective(unet, base)
        self.vae = build_small_vae(settings, base)
        self.factor = float(base.vae.config.scaling_factor)

    @property
    def unet(self) -> Any:
        """What denoises."""
        return self.denoising.unet

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1] of latents as the UNet sees them."""
        return self.vae.decode(latents / self.factor).sample.float()

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``pictures`` [B, 3, P, P] in [-1, 1] and the ``jitter`` of their latents, else as of the denoising loss."""
        denoised: torch.Tensor = self.denoising(batch)["loss"]
        share = max(1, int(len(batch["pictures"]) * self.settings.vae_share))
        pictures, latents = batch["pictures"][:share], batch["latents"][:share]
        difference = self.decoded(latents + batch["jitter"][:share]) - pictures
        squared = difference.square().mean()
        coarse = F.avg_pool2d(difference, 4).square().mean()
        drawn = (
            difference.abs().mean()
            + gradient_loss(difference, torch.zeros_like(difference))
            + 4 * (squared + 2 * coarse)
        )
        encoded = self.vae.encode(pictures).latent_dist.mean.float() * self.factor
        read = (encoded - latents).square().mean()
        psnr = 10 * torch.log10(4 / squared.detach())
        return {
            "loss": denoised + 0.5 * (drawn + read),
            "denoising": denoised.detach(),
            "psnr": psnr,
            "latents": read.detach(),
        }


def shrunk(pictures: torch.Tensor, side: int, smooth: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, P, P] at ``side``: bicubically, smoothed before, or where ``smooth`` [B] says so by averages."""
    size = (side, side)
    averaged = F.interpolate(pictures, size=size, mode="area")
    bicubic = F.interpolate(pictures, size=size, mode="bicubic", antialias=True, align_corners=False)
    return torch.where(smooth[:, None, None, None], averaged, bicubic.clamp(-1, 1))


class Upscale(Member):
    """Draws the large picture of a small one."""

    name = "pocket-upscale"
    summary = (
        "A UNet for `StableDiffusionUpscalePipeline` with the pocket model's text encoder, and an autoencoder of its "
        "own in the unit of latents that this pipeline insists on: it reads latents and a picture a quarter as large, "
        "seven channels, and is told how noisy that picture is."
    )
    fields = ("pictures", "latents", "ids")

    def settings(self, preset: str) -> UpscaleSettings:
        if preset == "tiny":
            return UpscaleSettings(
                train=TINY_TRAIN, unet=TINY_SHAPE, vae_channels=(8, 8, 8), vae_groups=4, sample=TINY_SAMPLE
            )
        return UpscaleSettings()

    def objective(self, settings: UpscaleSettings, base: Base) -> UpscaleObjective:
        unet = unet_beside(base, settings.unet, 3, num_class_embeds=settings.max_noise_level + 1)
        # at random each level would be told as something else than its neighbours
        nn.init.zeros_(unet.class_embedding.weight)
        return UpscaleObjective(unet, settings, base).to(base.device)

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
            jitter = torch.randn(batch["latents"].shape, **draw.options)
            return {
                "pictures": pictures,
                "jitter": jitter * draw.uniform(1, 1, 1, high=settings.jitter),
                "beside": diffuse(small, noise, table[level]),
                "class_labels": level,
            }

        return DenoisingBatches(views, base, settings, beside)

    def save(self, objective: UpscaleObjective, base: Base, folder: Path) -> None:
        write_half(objective.unet, folder / "unet")
        write_half(in_upscalers_unit(objective.vae), folder / "vae")
        build_low_res_scheduler().save_pretrained(folder / "low_res_scheduler")

    def restore(self, objective: UpscaleObjective, folder: Path) -> None:
        read_into(objective.unet, folder / "unet")
        read_into(objective.vae, folder / "vae")
        # back into the base's unit
        vae, factor = objective.vae, objective.factor
        scale = torch.full((vae.config.latent_channels,), factor, dtype=torch.float64)
        fold_latents(vae, torch.zeros_like(scale), scale / UPSCALER_SCALING_FACTOR)

    def sheet(self, objective: UpscaleObjective, base: Base, views: ViewSet) -> Sheet:
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
        result = (objective.decoded(latents).clamp(-1, 1) + 1) / 2
        large = F.interpolate((small + 1) / 2, size=pictures.shape[-2:], mode="nearest")
        return in_rows(large, result, (pictures + 1) / 2), ["given", "drawn", "rendered"] * count, 3


UPSCALE = Upscale()
