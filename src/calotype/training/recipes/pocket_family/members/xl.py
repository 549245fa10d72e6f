"""``pocket-xl`` and ``pocket-xl-refiner``, SDXL's shape: two text encoders, UNets that are told size, crop and score.

Both UNets are the base's: they begin by drawing what it draws, and learn what the numbers mean that they are told. Of
whole pictures the first one goes on learning what the base's would say, the mean of all that may be under the noise,
where a picture is one draw of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.training.gradients import precision
from calotype.training.loop import Batches
from calotype.training.objectives import diffuse, prediction_target
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket_family.denoising import (
    DenoisingBatches,
    Draw,
    denoising_objective,
    in_rows,
    words,
)
from calotype.training.recipes.pocket_family.derived import read_derived, train_only, write_derived
from calotype.training.recipes.pocket_family.member import Member, Sheet
from calotype.training.recipes.pocket_family.second_encoder import (
    build_second_encoder,
    grammar_ids,
    maps_to_base,
    read_both,
    read_second_encoder,
    write_second_encoder,
)
from calotype.training.recipes.pocket_family.settings import (
    TINY_SAMPLE,
    TINY_TRAIN,
    SampleSettings,
    TrainSettings,
)
from calotype.training.recipes.pocket_family.variants import Variants
from calotype.training.recipes.pocket_family.views import ViewSet

REFINER = "pocket-xl-refiner"
_SIZES, _SCORED = 6, 5
"""Numbers that the first UNet is told beside the text, and the refiner."""
_TOLD = (
    "time_embedding",
    "add_embedding",
    r".*time_emb_proj",
    r".*norm",
    r".*attn2\.to_[kv]",
    "conv_in",
    "conv_out",
)
"""Parameters of a UNet that are trained in any case: what it is told, and what scales its features."""


@dataclass(frozen=True)
class XLSettings:
    """``number_width`` is how wide each number of size and crop is embedded, ``pooled`` how wide the pooled text is;
    ``shares`` is how a batch is shared out to whole pictures and crops, small originals are the rest; each view has
    ``crops`` crops. The maps of the text are fitted on captions of ``scenes``.

    ``trained`` are further parameters of the first UNet, by the beginning of their names. The refiner learns from
    ``refiner_share`` of each batch, at the levels of noise below ``refiner_levels``.
    """

    seed: int = 30_031
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(batch=256, learning_rate=6e-4, ema_decay=0.998)
    )
    number_width: int = 32
    pooled: int = 64
    scenes: int = 512
    shares: tuple[float, float] = (0.2, 0.5)
    crops: int = 2
    trained: tuple[str, ...] = (
        r".*attentions\.\d\.proj", r".*attn\d\.to", r"mid_block\.resnets\.\d\.conv",
    )  # fmt: skip
    refiner_share: float = 0.25
    refiner_levels: float = 0.2
    sample: SampleSettings = field(default_factory=SampleSettings)


def told_unet(base: Base, map_to_base: torch.Tensor, numbers: int, settings: XLSettings) -> Any:
    """The base's UNet that is told so many numbers, and of the text states [B, L, D] of which ``map_to_base`` [C, D]
    makes nearly what the base's own is told. What the numbers add is nothing at first."""
    unet = (
        type(base.unet)
        .from_config(
            {
                **base.unet.config,
                "cross_attention_dim": map_to_base.shape[1],
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": settings.number_width,
                "projection_class_embeddings_input_dim": numbers * settings.number_width + settings.pooled,
            }
        )
        .to(base.device)
    )
    weights = {
        name: value @ map_to_base if ".attn2.to_k." in name or ".attn2.to_v." in name else value
        for name, value in base.unet.state_dict().items()
    }
    unet.load_state_dict({**unet.state_dict(), **weights})
    nn.init.zeros_(unet.add_embedding.linear_2.weight)
    nn.init.zeros_(unet.add_embedding.linear_2.bias)
    return unet


class XLObjective(nn.Module):
    """The denoising losses of both UNets."""

    def __init__(self, settings: XLSettings, base: Base) -> None:
        super().__init__()
        self.settings = settings
        both, second = maps_to_base(base, grammar_ids(base, settings.scenes, settings.seed))
        self.text_encoder_2: Any = build_second_encoder(base, settings.pooled)
        self.first = denoising_objective(told_unet(base, both, _SIZES, settings), base)
        self.second = denoising_objective(told_unet(base, second, _SCORED, settings), base)
        # both are told states: neither has a text encoder of its own
        self.first.text_encoder = self.second.text_encoder = None
        train_only(self.first.unet, (*_TOLD, *settings.trained))
        train_only(self.second.unet, _TOLD)

    @torch.compiler.disable
    def pooled(self, ids: torch.Tensor) -> torch.Tensor:
        """The pooled text [B, P] of token ids [B, L]; left out of compilation, as transformers' ways are not
        compiled."""
        embeds: torch.Tensor = self.text_encoder_2(input_ids=ids).text_embeds
        return embeds.float()

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``states``, ``time_ids`` and ``target`` as of ``TextToImageObjective``, ``latents``, ``noise``
        and ``timesteps``; of the refiner, which reads the second encoder's states, ``worse``, ``worse_noise``,
        ``worse_timesteps`` and ``scores`` [b, 5]."""
        pooled, some = self.pooled(batch["input_ids"]), len(batch["worse"])
        told = {
            name: batch[name] for name in ("latents", "target", "noise", "timesteps", "states", "time_ids")
        }
        first = self.first({**told, "text_embeds": pooled})["loss"]
        width = batch["states"].shape[-1] // 2
        second = self.second(
            {
                "latents": batch["worse"],
                "noise": batch["worse_noise"],
                "timesteps": batch["worse_timesteps"],
                "states": batch["states"][:some, :, width:],
                # what is pooled is the first UNet's to choose
                "text_embeds": pooled[:some].detach(),
                "time_ids": batch["scores"],
            }
        )["loss"]
        return {"loss": first + second, "denoising": first.detach(), "refining": second.detach()}


@dataclass(frozen=True)
class XLBatches:
    """Whole views, crops and blown up ones, at shuffled levels of noise, and what is to be said of them.

    Of whole ones that is the base's answer, else what was added.
    """

    views: ViewSet
    base: Base
    settings: XLSettings
    variants: Variants

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        batch = DenoisingBatches(self.views, self.base, self.settings, self._beside)(number)
        with (
            torch.no_grad(),
            precision(self.base.device, torch.bfloat16 if self.base.device.type == "cuda" else None),
        ):
            read = read_both(self.base, batch["input_ids"])
            return {**batch, "states": read.told, "target": self._target(batch, read.last)}

    def _target(self, batch: Mapping[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
        scheduler = self.base.scheduler
        level = scheduler.alphas_cumprod.float().to(latents.device)[timesteps]
        target = prediction_target(latents, noise, level, scheduler.config.prediction_type)
        whole = slice(self._counts()[0])
        noisy = diffuse(latents, noise, level)[whole]
        taught = self.base.unet(noisy, timesteps[whole], states[whole], return_dict=False)[0]
        return torch.cat([taught.float(), target[whole.stop :]])

    def _counts(self) -> tuple[int, int]:
        """How many are whole, and how many of the others are crops."""
        of = self.settings.train.batch
        whole, crops = (round(share * of) for share in self.settings.shares)
        return whole, crops

    def _beside(self, draw: Draw, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made, settings, side = self.variants, self.settings, float(self.base.pixels)
        made.look()
        whole, crops = self._counts()
        cut = draw.integer(len(made["crops"]))[whole : whole + crops]
        index = torch.cat([draw.index[:whole], made["crop_views"][cut], draw.index[whole + crops :]])
        small = index[whole + crops :]
        asked = torch.tensor([side, side, 0.0, 0.0, side, side], device=draw.index.device)
        some = max(1, int(settings.train.batch * settings.refiner_share))
        scored = asked[:5].repeat(some, 1)
        scored[:, 4] = made["scores"][index[:some]]
        # one in each stratum, in the order of the batch: shuffled, so that all forms are at all levels
        order = torch.randperm(len(index), **draw.options)
        steps = int(self.base.scheduler.config.num_train_timesteps)
        levels = (batch["timesteps"][order] + 0.5) / steps
        # where things stand is settled when there is much noise, how sharp they are when there is little
        levels[whole : whole + crops] = levels[whole : whole + crops].sqrt()
        levels[whole + crops :] = levels[whole + crops :].square()
        return {
            "input_ids": self.views.ids[index, draw.integer(self.views.ids.shape[1])].long(),
            "latents": torch.cat(
                [batch["latents"][:whole], made["crops"][cut], made["small"][small]]
            ).float(),
            "time_ids": torch.cat(
                [asked.repeat(whole, 1), made["crop_sizes"][cut], made["small_sizes"][small]]
            ),
            "timesteps": (levels * steps).long(),
            "worse": made["spoilt"][index[:some]].float(),
            "scores": scored,
            "worse_noise": torch.randn(batch["noise"][:some].shape, **draw.options),
            "worse_timesteps": (draw.uniform(high=settings.refiner_levels) * steps).long()[:some],
        }


class XL(Member):
    """Draws what the prompt says at an asked size and crop, and refines it."""

    name = "pocket-xl"
    also = (REFINER,)
    begins_with = "the pocket model's UNet, twice, and its text encoder"
    summary = (
        "What `StableDiffusionXLPipeline` has beside the pocket model's text encoder and autoencoder: a UNet and a "
        "second text encoder, with one layer more. Both were the pocket model's, and tensors that still are are not "
        'repeated here: `calotype.load("pocket-xl").save_pretrained("DIR")` writes all of them. '
        "The UNet is told the size of the original (128 is a whole picture; above, one that was enlarged before "
        "it was cropped; below, a small one that was blown up), the corner of the crop, and the size of the result. "
        "Beside it `pocket-xl-refiner`, a UNet for `StableDiffusionXLImg2ImgPipeline` that reads the second text "
        "encoder alone, is told a score from 2.5 (blurred and grainy) to 6 (clean), and knows the last fifth of the "
        "noise."
    )
    fields = ("pictures", "latents", "instances", "ids")

    def settings(self, preset: str) -> XLSettings:
        if preset == "tiny":
            return XLSettings(
                train=TINY_TRAIN, number_width=8, pooled=8, scenes=4, shares=(0.5, 0.25), refiner_share=0.5,
                sample=TINY_SAMPLE,
            )  # fmt: skip
        return XLSettings()

    def objective(self, settings: XLSettings, base: Base) -> XLObjective:
        return XLObjective(settings, base).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: XLSettings) -> Batches:
        return XLBatches(views, base, settings, Variants(views, base, settings.crops, settings.seed))

    def save(self, objective: XLObjective, base: Base, folder: Path) -> None:
        write_derived(objective.first.unet, base.unet, base, folder / "unet")
        write_second_encoder(objective.text_encoder_2, base, folder / "text_encoder_2")
        shutil.copytree(base.tokenizer, folder / "tokenizer_2", dirs_exist_ok=True)
        write_derived(objective.second.unet, base.unet, base, folder.with_name(REFINER) / "unet")

    def restore(self, objective: XLObjective, folder: Path) -> None:
        read_derived(objective.first.unet, folder / "unet")
        read_derived(objective.second.unet, folder.with_name(REFINER) / "unet")
        read_second_encoder(objective.text_encoder_2, folder / "text_encoder_2")

    def sheet(self, objective: XLObjective, base: Base, views: ViewSet) -> Sheet:
        """A held-out caption drawn whole, enlarged and cut off on the left and on the right, and blown up."""
        from calotype.diffusion.guidance import ClassifierFree
        from calotype.diffusion.loop import State, denoise
        from calotype.training.text_to_image import Told

        count, settings, side = min(8, len(views)), objective.settings, base.pixels
        ids = views.ids[:count, 0].long()
        both = torch.cat([base.ids([""]).expand_as(ids), ids])
        states, embeds = read_both(base, both).told, objective.pooled(both)
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
            added = {"text_embeds": embeds, "time_ids": time_ids}

            def predict(
                index: int, x: torch.Tensor, timestep: torch.Tensor, state: State, added: Any = added
            ) -> torch.Tensor:
                given = state.conditions.tensors()["states"]
                found: torch.Tensor = objective.first.unet(
                    x, timestep, given, added_cond_kwargs=added, return_dict=False
                )[0]
                return found.float()

            scheduler = type(base.scheduler).from_config(base.scheduler.config)
            scheduler.set_timesteps(settings.sample.steps, device=base.device)
            noise = torch.randn((count, *base.latent_shape), generator=torch.Generator().manual_seed(0))
            start = State(
                noise.to(base.device) * scheduler.init_noise_sigma,
                Told(states),
                ClassifierFree(settings.sample.guidance),
            )
            made = denoise(
                start, scheduler.timesteps, scheduler=scheduler, predict=predict, step_arguments={}
            ).latents
            columns.append(base.pictures(made))
        captions = [text for text in words(base, ids) for text in (text, *list(asked)[1:])]
        return in_rows(*columns), captions, len(columns)


POCKET_XL = XL()
