"""``pocket-turbo``: low-rank weights with which the pocket model draws in four steps (LCM-LoRA, arXiv:2311.05556)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.adapters import model as adapters
from calotype.core.errors import InputError
from calotype.training.consistency import ConsistencyObjective, Distillation, frozen_twin
from calotype.training.loop import Batches
from calotype.training.low_rank import add_trainable
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.settings import PROMPTS
from calotype.training.recipes.pocket_family.denoising import DenoisingBatches, Draw, in_rows
from calotype.training.recipes.pocket_family.member import Member, Sheet
from calotype.training.recipes.pocket_family.settings import TINY_TRAIN, TrainSettings
from calotype.training.recipes.pocket_family.views import ViewSet
from calotype.training.text_to_image import sample_latents

UPDATES = "turbo"
"""The name of the low-rank adapter."""
FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class TurboSettings:
    """``rank`` is that of every linear layer and convolution; ``sample_steps`` are the student's on the sheet, and
    ``teacher_steps`` those of the pocket model beside it."""

    seed: int = 30_011
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            learning_rate=5e-4, warmup=100, ema_decay=0.99, weight_decay=0.0, caption_dropout=0.0
        )
    )
    distillation: Distillation = field(default_factory=Distillation)
    rank: int = 16
    sample_steps: int = 4
    teacher_steps: int = 20


class TurboObjective(nn.Module):
    """Consistency loss of the base with low-rank weights against the base as it is, whose parameters it shares."""

    text_encoder: Any

    def __init__(self, settings: TurboSettings, base: Base) -> None:
        super().__init__()
        self.settings = settings
        student = frozen_twin(base.unet)
        add_trainable(student, UPDATES, adapters.layers_of(student), settings.rank)
        self.text_encoder = base.text_encoder
        self.consistency = ConsistencyObjective(
            student,
            base.unet,
            base.scheduler.alphas_cumprod.to(base.device),
            base.scheduler.config.prediction_type,
            {"states": base.read(base.ids([""]))},
            settings.distillation,
        )

    @property
    def unet(self) -> Any:
        """The student."""
        return self.consistency.unet

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the consistency loss, with ``input_ids`` [B, L] in place of the states."""
        states = self.text_encoder(input_ids=batch["input_ids"]).last_hidden_state
        loss: dict[str, torch.Tensor] = self.consistency({**batch, "states": states})
        return loss


class Turbo(Member):
    """Draws in four steps without guidance what the pocket model draws in twenty with it."""

    name = "pocket-turbo"
    summary = (
        "Low-rank weights for the pocket model, distilled from it with its guidance (latent consistency): with "
        "`LCMScheduler` it draws in four steps, at a `guidance_scale` of 1. The file is loaded by `load_lora_weights`."
    )
    fields = ("latents", "ids")

    def settings(self, preset: str) -> TurboSettings:
        if preset == "tiny":
            return TurboSettings(train=TINY_TRAIN, rank=1, sample_steps=2, teacher_steps=2)
        return TurboSettings()

    def objective(self, settings: TurboSettings, base: Base) -> TurboObjective:
        return TurboObjective(settings, base).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: TurboSettings) -> Batches:
        def nothing(draw: Draw, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {}

        return DenoisingBatches(views, base, settings, nothing)

    def save(self, objective: TurboObjective, base: Base, folder: Path) -> None:
        from calotype import StableDiffusionPipeline

        layers = {
            name: value.detach().half().cpu().contiguous()
            for name, value in adapters.tensors(objective.unet, UPDATES).items()
        }
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)

    def restore(self, objective: TurboObjective, folder: Path) -> None:
        from safetensors.torch import load_file

        if not (folder / FILE).is_file():
            raise InputError(f"There are no low-rank weights in {folder}: name a folder with {FILE}.")
        stored = {name.removeprefix("unet."): value for name, value in load_file(folder / FILE).items()}
        mine = adapters.tensors(objective.unet, UPDATES)
        shapes = [{name: value.shape for name, value in part.items()} for part in (mine, stored)]
        if shapes[0] != shapes[1]:
            raise InputError(f"The low-rank weights in {folder} are of another rank or another model.")
        with torch.no_grad():
            for name, value in mine.items():
                value.copy_(stored[name])

    def sheet(self, objective: TurboObjective, base: Base, views: ViewSet) -> Sheet:
        """What the pocket model draws in its steps, and the student in few, of the same noise."""
        from calotype import LCMScheduler

        settings = objective.settings
        teacher = type(base.scheduler).from_config(base.scheduler.config)
        student = LCMScheduler.from_config(
            base.scheduler.config, timestep_scaling=settings.distillation.timestep_scaling
        )

        def pictures(unet: Any, scheduler: Any, steps: int, guidance: float) -> torch.Tensor:
            latents = sample_latents(
                unet,
                base.text_encoder,
                scheduler,
                base.ids(PROMPTS),
                base.ids([""]),
                base.latent_shape,
                steps=steps,
                guidance=guidance,
                generator=torch.Generator().manual_seed(settings.seed),
            )
            return base.pictures(latents)

        drawn = in_rows(
            pictures(base.unet, teacher, settings.teacher_steps, settings.distillation.guidance),
            pictures(objective.unet, student, settings.sample_steps, 1.0),
        )
        captions = [
            text for prompt in PROMPTS for text in (prompt, f"the same in {settings.sample_steps} steps")
        ]
        return drawn, captions, 4


TURBO = Turbo()
