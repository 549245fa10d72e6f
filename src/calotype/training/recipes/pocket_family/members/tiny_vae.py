"""``pocket-tiny-vae``: the base's autoencoder, distilled to a small and quick one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.training.loop import Batches
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.data import to_unit
from calotype.training.recipes.pocket_family.denoising import draw_views, in_rows
from calotype.training.recipes.pocket_family.member import Member, Sheet, read_into, write_half
from calotype.training.recipes.pocket_family.settings import TINY_TRAIN, TrainSettings
from calotype.training.recipes.pocket_family.views import ViewSet
from calotype.training.vae import gradient_loss


@dataclass(frozen=True)
class TinyShape:
    """Width of all stages, and residual blocks of each stage from the picture inwards, and outwards again."""

    width: int = 32
    encoder: tuple[int, ...] = (1, 2, 2)
    decoder: tuple[int, ...] = (3, 3, 1)


@dataclass(frozen=True)
class TinyVaeSettings:
    """``sharpness`` weighs the error of differences, ``color`` the squared one, ``latents`` that of the encoder.

    ``jitter`` is the most noise that is added to latents, so that those which a UNet made are decoded well too.
    """

    seed: int = 30_011
    train: TrainSettings = field(default_factory=lambda: TrainSettings(batch=128, warmup=200))
    shape: TinyShape = field(default_factory=TinyShape)
    sharpness: float = 1.0
    color: float = 4.0
    latents: float = 1.0
    jitter: float = 0.1


class TinyVaeObjective(nn.Module):
    """The decoder learns to make of latents what the teacher makes of them, the encoder the teacher's latents."""

    tiny: Any
    teacher: Any

    def __init__(self, settings: TinyVaeSettings, base: Base) -> None:
        from calotype import AutoencoderTiny

        super().__init__()
        shape, stages = settings.shape, len(base.vae.config.block_out_channels)
        if {len(shape.encoder), len(shape.decoder)} != {stages}:
            raise InputError(
                f"The base's autoencoder has {stages} stages: encoder and decoder must have as many."
            )
        self.settings = settings
        self.teacher = base.vae
        self.factor = float(base.vae.config.scaling_factor)
        self.tiny = AutoencoderTiny(
            encoder_block_out_channels=(shape.width,) * len(shape.encoder),
            decoder_block_out_channels=(shape.width,) * len(shape.decoder),
            num_encoder_blocks=shape.encoder,
            num_decoder_blocks=shape.decoder,
            latent_channels=base.latent_shape[0],
        )

    @torch.no_grad()
    def wanted(self, latents: torch.Tensor) -> torch.Tensor:
        """What the teacher decodes, in [-1, 1]."""
        return self.teacher.decode(latents / self.factor).sample.float().clamp(-1, 1)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``pictures`` [B, 3, P, P] in [-1, 1], their ``latents`` as a UNet sees them, and others to ``decode``."""
        chosen = self.settings
        difference = self.tiny.decode(batch["decode"]).sample.float() - self.wanted(batch["decode"])
        squared = difference.square().mean()
        coarse = F.avg_pool2d(difference, 4).square().mean()
        drawn = (
            difference.abs().mean()
            + chosen.sharpness * gradient_loss(difference, torch.zeros_like(difference))
            + chosen.color * (squared + 2 * coarse)
        )
        encoded = self.tiny.encode(batch["pictures"]).latents.float()
        read = (encoded - batch["latents"]).square().mean()
        # the peak of pictures in [-1, 1] is 2
        psnr = 10 * torch.log10(4 / squared.detach())
        return {"loss": drawn + chosen.latents * read, "psnr": psnr, "latents": read.detach()}


class TinyVae(Member):
    """Decodes and encodes as the base's autoencoder does, with a fraction of the work."""

    name = "pocket-tiny-vae"
    summary = (
        "An `AutoencoderTiny` that reads and makes the latents of the pocket model in place of its autoencoder "
        "(`pipe.vae`). Its latents are the UNet's own, so `scaling_factor` is 1."
    )
    fields = ("pictures", "latents")

    def settings(self, preset: str) -> TinyVaeSettings:
        if preset == "tiny":
            return TinyVaeSettings(train=TINY_TRAIN, shape=TinyShape(8, (1, 1, 1), (1, 1, 1)))
        return TinyVaeSettings()

    def objective(self, settings: TinyVaeSettings, base: Base) -> TinyVaeObjective:
        return TinyVaeObjective(settings, base).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: TinyVaeSettings) -> Batches:
        def batch(number: int) -> dict[str, torch.Tensor]:
            draw = draw_views(views, number, settings)
            latents = views.latents[draw.index].float()
            noise = torch.randn(latents.shape, **draw.options)
            strength = draw.uniform(1, 1, 1, high=settings.jitter)
            return {
                "pictures": to_unit(views.pictures[draw.index]),
                "latents": latents,
                "decode": latents + strength * noise,
            }

        return batch

    def save(self, objective: TinyVaeObjective, base: Base, folder: Path) -> None:
        write_half(objective.tiny, folder / "vae")

    def restore(self, objective: TinyVaeObjective, folder: Path) -> None:
        read_into(objective.tiny, folder / "vae")

    def sheet(self, objective: TinyVaeObjective, base: Base, views: ViewSet) -> Sheet:
        """Pictures, what the teacher makes of their latents, what this one does, and of its own latents."""
        count = min(8, len(views))
        pictures, latents = to_unit(views.pictures[:count]), views.latents[:count].float()
        tiny = objective.tiny
        own = tiny.decode(tiny.encode(pictures).latents).sample
        made = [pictures, objective.wanted(latents), tiny.decode(latents).sample, own]
        captions = ["picture", "teacher", "decoded", "encoded and decoded"] * count
        return (in_rows(*made) + 1) / 2, captions, len(made)


TINY_VAE = TinyVae()
