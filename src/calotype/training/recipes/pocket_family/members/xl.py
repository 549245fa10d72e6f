"""``pocket-xl`` and ``pocket-xl-refiner``, SDXL's shape: two text encoders, UNets that are told size, crop and score.

Both UNets and the second text encoder, which they share, are trained together. Of whole pictures the first UNet learns
what the pocket model's would say, the mean of all that may be under the noise, where a picture is one draw of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.training.loop import Batches
from calotype.training.objectives import diffuse, like, prediction_target
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.data import to_unit
from calotype.training.recipes.pocket.networks import save_transformer, unet_of
from calotype.training.recipes.pocket_family.degraded import cropped, spoilt
from calotype.training.recipes.pocket_family.denoising import (
    DenoisingBatches,
    Draw,
    denoising_objective,
    in_rows,
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

REFINER = "pocket-xl-refiner"
_SIZES, _SCORED = 6, 5
"""Numbers that the first UNet is told beside the text, and the refiner."""


@dataclass(frozen=True)
class SecondEncoder:
    """Sizes of the second text encoder."""

    width: int = 64
    layers: int = 3
    heads: int = 4
    inner: int = 192


@dataclass(frozen=True)
class XLSettings:
    """``number_width`` is how wide each number of size and crop is embedded, ``crops`` how the pictures of a batch are
    shared out to whole ones, crops and small originals; ``dropped`` is how often the text is left out.

    The refiner learns from ``refiner_share`` of each batch, at the levels of noise below ``refiner_levels``.
    ``reading`` weighs how well the second encoder tells what the first one reads.
    """

    seed: int = 30_031
    train: TrainSettings = field(default_factory=lambda: TrainSettings(batch=256, caption_dropout=0.0))
    unet: ShapeSettings = field(
        default_factory=lambda: ShapeSettings(channels=(48, 64, 64), head_width=16, groups=16)
    )
    refiner: ShapeSettings = field(
        default_factory=lambda: ShapeSettings(
            channels=(32, 48, 48), attention=(False, False, True), head_width=16, groups=16, time_width=192
        )
    )
    encoder: SecondEncoder = field(default_factory=SecondEncoder)
    number_width: int = 32
    crops: tuple[float, float, float] = (0.55, 0.3, 0.15)
    dropped: float = 0.1
    refiner_share: float = 0.375
    refiner_levels: float = 0.2
    reading: float = 0.2
    sample: SampleSettings = field(default_factory=SampleSettings)


def build_second_encoder(shape: SecondEncoder, base: Base) -> Any:
    """A ``CLIPTextModelWithProjection`` for the base's tokens, of random weights."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    given = base.text_encoder.config
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=given.vocab_size,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            projection_dim=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=given.max_position_embeddings,
            bos_token_id=given.bos_token_id,
            eos_token_id=given.eos_token_id,
            pad_token_id=given.pad_token_id,
        )
    )


def _told(width: int, numbers: int, pooled: int) -> dict[str, Any]:
    """Entries of a UNet that is told so many numbers, each embedded ``width`` wide, and the pooled text."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": width,
        "projection_class_embeddings_input_dim": numbers * width + pooled,
    }


class XLObjective(nn.Module):
    """The denoising losses of both UNets, and how far the second encoder is from telling what the first one reads."""

    def __init__(self, settings: XLSettings, base: Base) -> None:
        super().__init__()
        self.settings = settings
        second, first = settings.encoder.width, base.text_encoder.config.hidden_size
        self.text_encoder_2: Any = build_second_encoder(settings.encoder, base)
        shape = base.latent_shape
        entries = _told(settings.number_width, _SIZES, second)
        self.first = denoising_objective(unet_of(settings.unet, shape, first + second, **entries), base)
        entries = _told(settings.number_width, _SCORED, second)
        self.second = denoising_objective(unet_of(settings.refiner, shape, second, **entries), base)
        # both are told states: neither has a text encoder of its own
        self.first.text_encoder = self.second.text_encoder = None
        self.telling = nn.Linear(second, first)
        self.text_encoder = base.text_encoder
        self.teacher = base.unet
        self.vae = base.vae

    @torch.compiler.disable
    def read(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The states before the last layer of both encoders [B, L, D], as the pipelines take them, the pooled text, and
        the first encoder's last states, which the teacher takes.

        Left out of compilation: transformers collects the states in ways that are not compiled.
        """
        with torch.no_grad():
            known = self.text_encoder(input_ids=ids, output_hidden_states=True)
        read = self.text_encoder_2(input_ids=ids, output_hidden_states=True)
        return (
            known.hidden_states[-2].float(),
            read.hidden_states[-2].float(),
            read.text_embeds.float(),
            known.last_hidden_state.float(),
        )

    @torch.no_grad()
    def target(
        self, batch: Mapping[str, torch.Tensor], latents: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """What the first UNet is to predict: of whole pictures with a text the teacher's answer, else what is so."""
        noise, timesteps = batch["noise"], batch["timesteps"]
        level = self.first.alphas_cumprod[timesteps]
        taught = self.teacher(diffuse(latents, noise, level), timesteps, states, return_dict=False)[0]
        whole = like((batch["time_ids"][:, 0] == batch["pictures"].shape[-1]) & ~batch["dropped"], latents)
        own = prediction_target(latents, noise, level, self.first.prediction)
        return torch.where(whole, taught.float(), own)

    @torch.no_grad()
    def latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """Of pictures in [-1, 1], as the UNets see them."""
        latents: torch.Tensor = self.vae.encode(pictures).latent_dist.mean.float()
        return latents * self.vae.config.scaling_factor

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``pictures`` [B, 3, P, P] in [-1, 1], ``time_ids`` [B, 6], ``noise`` and ``timesteps``, and ``dropped`` bool
        [B]; what the refiner is to draw: ``worse`` [b, 3, P, P], ``scores`` [b, 5], ``worse_noise`` and
        ``worse_timesteps``."""
        known, told, pooled, last = self.read(batch["input_ids"])
        # an empty text is zeros, as `force_zeros_for_empty_prompt` has it
        kept = (~batch["dropped"]).float()
        states = torch.cat([known, told], dim=-1) * kept[:, None, None]
        latents = self.latents(batch["pictures"])
        first = self.first(
            {
                "latents": latents,
                "target": self.target(batch, latents, last),
                "noise": batch["noise"],
                "timesteps": batch["timesteps"],
                "states": states,
                "text_embeds": pooled * kept[:, None],
                "time_ids": batch["time_ids"],
            }
        )["loss"]
        some = len(batch["worse"])
        second = self.second(
            {
                "latents": self.latents(batch["worse"]),
                "noise": batch["worse_noise"],
                "timesteps": batch["worse_timesteps"],
                # the refiner reads what there is to read; what is read is the first UNet's to choose
                "states": (told * kept[:, None, None])[:some].detach(),
                "text_embeds": (pooled * kept[:, None])[:some].detach(),
                "time_ids": batch["scores"],
            }
        )["loss"]
        reading = (self.telling(told) - known).square().mean() / known.square().mean()
        return {
            "loss": first + second + self.settings.reading * reading,
            "denoising": first.detach(),
            "refining": second.detach(),
            "reading": reading.detach(),
        }


class XL(Member):
    """Draws what the prompt says at an asked size and crop, and refines it."""

    name = "pocket-xl"
    also = (REFINER,)
    summary = (
        "A UNet and a second text encoder for `StableDiffusionXLPipeline` with the pocket model's text encoder and "
        "autoencoder. It is told the size of the original (128 is a whole picture; above, one that was enlarged before "
        "it was cropped; below, a small one that was blown up), the corner of the crop, and the size of the result. "
        "Beside it `pocket-xl-refiner`, a UNet for `StableDiffusionXLImg2ImgPipeline` that reads the second text "
        "encoder alone, is told a score from 2.5 (blurred and grainy) to 6 (clean), and knows the last fifth of the "
        "noise."
    )
    fields = ("pictures", "latents", "ids")

    def settings(self, preset: str) -> XLSettings:
        if preset == "tiny":
            return XLSettings(
                train=TINY_TRAIN, unet=TINY_SHAPE, refiner=TINY_SHAPE, encoder=SecondEncoder(8, 2, 2, 16),
                number_width=8, refiner_share=0.5, sample=TINY_SAMPLE,
            )  # fmt: skip
        return XLSettings()

    def objective(self, settings: XLSettings, base: Base) -> XLObjective:
        return XLObjective(settings, base).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: XLSettings) -> Batches:
        steps = int(base.scheduler.config.num_train_timesteps)
        some = max(1, int(settings.train.batch * settings.refiner_share))

        def beside(draw: Draw, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            pictures = to_unit(views.pictures[draw.index])
            seen, time_ids = cropped(pictures, draw, settings.crops)
            worse, score = spoilt(pictures, draw)
            whole = torch.full_like(score, float(base.pixels))
            zero = torch.zeros_like(score)
            scores = torch.stack((whole, whole, zero, zero, score), dim=1)
            return {
                "pictures": seen,
                "time_ids": time_ids,
                "worse": worse[:some],
                "scores": scores[:some],
                "worse_noise": torch.randn(batch["noise"].shape, **draw.options)[:some],
                "worse_timesteps": (draw.uniform(high=settings.refiner_levels) * steps).long()[:some],
                "dropped": draw.chance(settings.dropped),
            }

        return DenoisingBatches(views, base, settings, beside)

    def save(self, objective: XLObjective, base: Base, folder: Path) -> None:
        write_half(objective.first.unet, folder / "unet")
        second = objective.text_encoder_2
        weights = {
            key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": value
            for key, value in second.state_dict().items()
            if not key.endswith("position_ids")
        }
        save_transformer(second, weights, folder / "text_encoder_2")
        shutil.copytree(base.tokenizer, folder / "tokenizer_2", dirs_exist_ok=True)
        write_half(objective.second.unet, folder.with_name(REFINER) / "unet")

    def restore(self, objective: XLObjective, folder: Path) -> None:
        from transformers import CLIPTextModelWithProjection

        read_into(objective.first.unet, folder / "unet")
        read_into(objective.second.unet, folder.with_name(REFINER) / "unet")
        stored = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
        objective.text_encoder_2.load_state_dict(stored.state_dict())

    def sheet(self, objective: XLObjective, base: Base, views: ViewSet) -> Sheet:
        """A held-out caption drawn whole, enlarged and cut off on the left and on the right, and blown up."""
        from calotype.diffusion.guidance import ClassifierFree
        from calotype.diffusion.loop import State, denoise
        from calotype.training.text_to_image import Told

        count, settings, side = min(8, len(views)), objective.settings, base.pixels
        ids = views.ids[:count, 0].long()
        known, told, pooled, _ = objective.read(ids)
        states, embeds = torch.cat([known, told], dim=-1), pooled
        large = side * 3 // 2
        asked = {
            "whole": (side, 0),
            "cut left": (large, large - side),
            "cut right": (large, 0),
            "blown up": (side // 2, 0),
        }
        columns = []
        for original, left in asked.values():
            numbers = [original, original, 0 if left == 0 and original <= side else (large - side) // 2, left]
            time_ids = torch.tensor([[*numbers, side, side]], device=base.device).float().repeat(2 * count, 1)
            both = {"text_embeds": torch.cat([torch.zeros_like(embeds), embeds]), "time_ids": time_ids}

            def predict(
                index: int, x: torch.Tensor, timestep: torch.Tensor, state: State, both: Any = both
            ) -> torch.Tensor:
                given = state.conditions.tensors()["states"]
                found: torch.Tensor = objective.first.unet(
                    x, timestep, given, added_cond_kwargs=both, return_dict=False
                )[0]
                return found.float()

            scheduler = type(base.scheduler).from_config(base.scheduler.config)
            scheduler.set_timesteps(settings.sample.steps, device=base.device)
            noise = torch.randn((count, *base.latent_shape), generator=torch.Generator().manual_seed(0))
            start = State(
                noise.to(base.device) * scheduler.init_noise_sigma,
                Told(torch.cat([torch.zeros_like(states), states])),
                ClassifierFree(settings.sample.guidance),
            )
            made = denoise(
                start, scheduler.timesteps, scheduler=scheduler, predict=predict, step_arguments={}
            ).latents
            columns.append(base.pictures(made))
        captions = [text for text in words(base, ids) for text in (text, *list(asked)[1:])]
        return in_rows(*columns), captions, len(columns)


POCKET_XL = XL()
