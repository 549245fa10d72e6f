"""What members that denoise latents have in common: their draws, and drawing pictures to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from calotype.training.objectives import stratified_timesteps
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.networks import unet_of
from calotype.training.recipes.pocket_family.settings import MemberSettings, SampleSettings, ShapeSettings
from calotype.training.recipes.pocket_family.views import ViewSet
from calotype.training.text_to_image import TextToImageObjective, sample_latents

LOOK_EVERY = 20
"""New views are looked for at batches of a number that this divides."""


@dataclass(frozen=True)
class Draw:
    """The views of a batch, and the generator of all that is still to be drawn for it."""

    index: torch.Tensor
    """int64 [B]"""
    options: dict[str, Any]
    """generator and device"""

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """[B, *shape] in [low, high)."""
        return low + (high - low) * torch.rand((len(self.index), *shape), **self.options)

    def chance(self, odds: float) -> torch.Tensor:
        """bool [B], true with these odds."""
        return self.uniform() < odds

    def integer(self, high: int) -> torch.Tensor:
        """int64 [B] in [0, high)."""
        return torch.randint(high, (len(self.index),), **self.options)


def draw_views(views: ViewSet, number: int, settings: MemberSettings) -> Draw:
    """The views of the batch of a number."""
    if number % LOOK_EVERY == 0:
        views.look()
    generator = torch.Generator(views.device).manual_seed(settings.seed + number)
    options: dict[str, Any] = {"generator": generator, "device": views.device}
    return Draw(torch.randint(len(views), (settings.train.batch,), **options), options)


@dataclass(frozen=True)
class DenoisingBatches:
    """Batches of latents with one of their captions (or the empty one), noise and timesteps, and what ``beside`` adds.

    ``beside(draw, batch)`` returns further tensors of the batch; it may replace the ``input_ids``. Captions are left
    out afterwards. Needs the fields ``latents`` and ``ids``.
    """

    views: ViewSet
    base: Base
    settings: MemberSettings
    beside: Callable[[Draw, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    empty: torch.Tensor = field(init=False)
    """int64 [1, L]"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "empty", self.base.ids([""]))

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        """The batch of this number, drawn on the device."""
        views, chosen = self.views, self.settings.train
        draw = draw_views(views, number, self.settings)
        latents = views.latents[draw.index].float()
        which = draw.integer(views.ids.shape[1])
        batch = {
            "latents": latents,
            "input_ids": views.ids[draw.index, which].long(),
            "noise": torch.randn(latents.shape, **draw.options),
            "timesteps": stratified_timesteps(
                torch.rand((1,), **draw.options),
                chosen.batch,
                int(self.base.scheduler.config.num_train_timesteps),
            ),
        }
        batch |= self.beside(draw, batch)
        dropped = draw.chance(chosen.caption_dropout)[:, None]
        batch["input_ids"] = torch.where(dropped, self.empty, batch["input_ids"])
        return batch


def unet_beside(base: Base, shape: ShapeSettings | None, beside: int, **entries: Any) -> Any:
    """A UNet that reads ``beside`` further channels after the base's latents, of random weights.

    Without a shape it has the base's widths and weights instead, and begins by listening neither to those channels nor
    to a class, where it is told one.
    """
    if shape is not None:
        context = base.unet.config.cross_attention_dim
        return unet_of(shape, base.latent_shape, context, beside=beside, **entries)
    unet = type(base.unet).from_config(
        {**base.unet.config, "in_channels": base.latent_shape[0] + beside, **entries}
    )
    weights = {name: torch.zeros_like(value) for name, value in unet.state_dict().items() if "class_" in name}
    weights |= base.unet.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, first.new_zeros(len(first), beside, *first.shape[2:])], 1)
    unet.load_state_dict(weights)
    return unet


class MemberObjective(nn.Module):
    """The denoising loss of a member's UNet, with the member's settings."""

    def __init__(self, unet: nn.Module, base: Base, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.denoising = denoising_objective(unet, base)

    @property
    def unet(self) -> Any:
        """What denoises."""
        return self.denoising.unet

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As of ``TextToImageObjective``."""
        loss: dict[str, torch.Tensor] = self.denoising(batch)
        return loss


def denoising_objective(unet: nn.Module, base: Base) -> TextToImageObjective:
    """The loss of a UNet that reads the base's frozen text encoder, with the base's noise and prediction."""
    scheduler = base.scheduler
    return TextToImageObjective(
        unet, base.text_encoder, scheduler.alphas_cumprod, scheduler.config.prediction_type
    ).to(base.device)


def drawn(
    predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    base: Base,
    input_ids: torch.Tensor,
    chosen: SampleSettings,
    seed: int,
) -> torch.Tensor:
    """Latents for prompts [B, L]; ``predict(latents, timestep, states)`` sees 2B, without a prompt first."""

    def unet(
        x: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        return (predict(x, timestep, states),)

    return sample_latents(
        unet,
        base.text_encoder,
        type(base.scheduler).from_config(base.scheduler.config),
        input_ids,
        base.ids([""]),
        base.latent_shape,
        steps=chosen.steps,
        guidance=chosen.guidance,
        generator=torch.Generator().manual_seed(seed),
    )


def in_rows(*columns: torch.Tensor) -> torch.Tensor:
    """Columns of pictures [B, 3, P, P] each, as rows [B·columns, 3, P, P]."""
    return torch.stack([column.float() for column in columns], dim=1).flatten(0, 1)


def words(base: Base, ids: torch.Tensor) -> list[str]:
    """The captions [B, L] of a sheet in letters."""
    from calotype.training.tokenizer import END, START

    letters = {number: token for token, number in base.encoder.ids.items()}
    rows = [[letters[i] for i in row if letters[i] not in (START, END)] for row in ids.tolist()]
    return ["".join(row).replace("</w>", " ").strip() for row in rows]
