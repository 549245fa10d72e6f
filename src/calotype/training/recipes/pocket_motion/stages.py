"""The stages of the recipe: clips, motion, export."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.core.files import write_text
from calotype.core.version import __version__
from calotype.training.checkpoint import Position
from calotype.training.gradients import precision
from calotype.training.loop import LoopSettings, compile_ahead, fit
from calotype.training.pace import Pace
from calotype.training.recipes.base import Base
from calotype.training.recipes.chunks import VALIDATION, ChunkFolder, chunk_name
from calotype.training.recipes.pocket.networks import attention_of
from calotype.training.recipes.pocket.run import Run
from calotype.training.recipes.pocket_motion.clips import ClipBatches, ClipSet, make_clips
from calotype.training.recipes.pocket_motion.networks import (
    ClipObjective,
    build_unet,
    write_adapter,
)
from calotype.training.recipes.pocket_motion.settings import HEARD, PRESETS, PROMPTS, MotionSettings
from calotype.training.sheets import write_sheet
from calotype.training.text_to_image import sample_latents

NAME = "pocket-motion"
MAX_BYTES = 10_000_000
"""The whole folder may weigh this much."""
STAGE_WEIGHTS = {"clips": 4.0, "motion": 8.0, "export": 0.4}
_STRIP = 8
"""Frames of a clip on a sheet."""


def clips_folder(run: Run) -> Path:
    return run.work / "clips"


def prepare_clips(settings: MotionSettings, run: Run, base: Base) -> None:
    """Stage ``clips``: leaves ``work/clips``."""
    minutes = run.minutes_for("clips")
    make_clips(settings, clips_folder(run), base, math.inf if minutes is None else 60 * minutes, run.say)


def example_batch(settings: MotionSettings, base: Base) -> dict[str, torch.Tensor]:
    """A batch of the shapes of training, of nothing."""
    batch, device = settings.train.batch, base.device
    latents = torch.zeros(
        batch, base.latent_shape[0], settings.clips.frames, *base.latent_shape[1:], device=device
    )
    return {
        "latents": latents,
        "states": base.read(base.ids([""] * batch)),
        "noise": torch.zeros_like(latents),
        "timesteps": torch.zeros(batch, dtype=torch.int64, device=device),
        "signal": torch.ones(batch, device=device),
        "ways": torch.zeros(batch, settings.clips.frames, 3, device=device),
    }


def train_motion(
    settings: MotionSettings, run: Run, base: Base, init: Path | None, maker: Any = None
) -> None:
    """Stage ``motion``: leaves ``out/pocket-motion``, the adapter, and sheets and the log in ``out``.

    ``maker`` is the process that makes clips, if one does so at the same time.
    """
    chosen, device = settings.train, run.device
    if chosen.faint > 0 and base.scheduler.config.prediction_type == "epsilon":
        raise InputError(
            "A checkpoint that predicts noise learns nothing where there is only noise: set train.faint=0, or take one "
            "that predicts v."
        )
    unet = build_unet(settings, base, init)
    objective = ClipObjective(unet, base.scheduler, chosen.changing, chosen.following).to(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        unet.to(memory_format=torch.channels_last)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    run.say(f"{trained:,} parameters are trained")
    autocast = torch.bfloat16 if device.type == "cuda" else None
    with attention_of(device):
        compiles = run.compile and compile_ahead(
            objective, example_batch(settings, base), autocast, device, run.say
        )
        source = ChunkFolder(clips_folder(run), "clips", maker)
        clips = ClipSet(source, device)
        source.wait(chunk_name(0))
        validation = ClipSet(ChunkFolder(source.folder, "clips", complete=True), device)
        validation.take([source.wait(VALIDATION)])
        clips.look()
        run.say(f"{len(clips):,} clips are there")
        minutes = None if chosen.steps is not None else run.minutes_for("motion")
        outcome = fit(
            objective,
            ClipBatches(clips, base, settings),
            LoopSettings(
                pace=Pace(chosen.learning_rate, chosen.steps, minutes, chosen.warmup),
                ema_decay=chosen.ema_decay,
                autocast=autocast,
                compile=compiles,
                checkpoint_every=None,
                inspect_every=90.0,
            ),
            folder=run.work / "motion-training",
            samples_per_batch=chosen.batch,
            inspect=_Inspection(
                settings, run, base, objective, ClipBatches(validation, base, settings), clips
            ),
            say=run.say,
        )
    with outcome.ema.applied():
        write_adapter(unet, settings, base, run.out / NAME)
    position = outcome.position
    facts = {"steps": position.step, "minutes": round(position.seconds / 60, 2), "clips": len(clips)}
    facts["validation_loss"] = next(
        (r["validation_loss"] for r in reversed(outcome.reports) if "validation_loss" in r), math.nan
    )
    write_text(run.work / "motion.json", json.dumps(facts))
    shutil.copyfile(run.work / "motion-training" / "log.jsonl", run.out / "motion-log.jsonl")


class _Inspection:
    """Validation loss on held-out motions and a sheet of the fixed prompts, at the averaged weights, which it saves."""

    def __init__(
        self,
        settings: MotionSettings,
        run: Run,
        base: Base,
        objective: ClipObjective,
        batches: ClipBatches,
        clips: ClipSet,
    ) -> None:
        self._settings, self._run, self._base = settings, run, base
        self._objective, self._batches, self._clips = objective, batches, clips

    def __call__(self, position: Position) -> Mapping[str, float]:
        base, device = self._base, self._run.device
        write_adapter(self._objective.unet, self._settings, base, self._run.out / NAME)
        with precision(device, torch.bfloat16 if device.type == "cuda" else None):
            losses = [self._objective(self._batches(number)) for number in range(4)]
            heard = self._heard()
            channels, *sides = base.latent_shape
            latents = sample_latents(
                self._objective.unet,
                base.text_encoder,
                type(base.scheduler).from_config(base.scheduler.config),
                base.ids(PROMPTS),
                base.ids([""]),
                (channels, self._settings.clips.frames, *sides),
                steps=self._settings.sampling_steps,
                guidance=self._settings.guidance,
                generator=torch.Generator().manual_seed(self._settings.seed),
            )
        write_strips(self._run.out / "motion.png", latents, base)
        means = {f"validation_{name}": sum(loss[name].item() for loss in losses) / 4 for name in losses[0]}
        return {**means, "heard": heard}

    def _heard(self) -> float:
        """How much of what tells clips to the right from clips to the left the words alone say: 0 nothing, 1 all."""
        base, clips = self._base, self._clips
        gone = (clips.ways[:, -1] - clips.ways[:, 0]).float()
        across = (gone[:, 1].abs() < 0.2) & (gone[:, 2].abs() < 0.1)
        means = [
            clips.latents[across & (side * gone[:, 0] > 0.4)].mean(0, dtype=torch.float32) for side in (1, -1)
        ]
        told = []
        for side in ("right", "left"):
            texts = [text.format(side) for text in HEARD]
            noise = torch.randn(
                (len(texts), *clips.latents.shape[1:]), generator=torch.Generator().manual_seed(1)
            ).to(base.device)
            last = torch.full((len(texts),), len(self._objective.alphas_cumprod) - 1, device=base.device)
            answer = self._objective.unet(noise, last, base.read(base.ids(texts)), return_dict=False)[0]
            told.append(-answer.float().mean(0))  # where there is only noise, v is the negative of the clip
        difference = means[0] - means[1]
        return float(((told[0] - told[1]) * difference).sum() / difference.square().sum())


def write_strips(path: Path, latents: torch.Tensor, base: Base) -> None:
    """A sheet of clips [B, C, F, H, W], one a row, of frames that are evenly apart."""
    frames = latents.shape[2]
    shown = torch.linspace(0, frames - 1, min(_STRIP, frames)).round().long()
    chosen = latents.transpose(1, 2)[:, shown.to(latents.device)].flatten(0, 1)
    pictures = torch.cat([base.pictures(part) for part in chosen.split(64)])
    captions = [text if i == 0 else "" for text in PROMPTS for i in range(len(shown))]
    write_sheet(path, pictures, captions, columns=len(shown))


def export(settings: MotionSettings, run: Run, init: Path | None) -> None:
    """Stage ``export``: the model card of ``out/pocket-motion``. ``InputError`` if it is not there or too large."""
    folder = run.out / NAME
    facts_path = run.work / "motion.json"
    if not facts_path.exists() or not (folder / "config.json").exists():
        raise InputError(f"There is no adapter in {folder}: run the stage motion first.")
    facts = json.loads(facts_path.read_text(encoding="utf-8"))
    write_text(folder / "README.md", _model_card(settings, run, facts, init))
    size = sum(file.stat().st_size for file in folder.iterdir())
    run.say(f"{folder}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise InputError(f"The adapter weighs {size:,} bytes, more than {MAX_BYTES:,}: make it smaller.")


def _model_card(settings: MotionSettings, run: Run, facts: Mapping[str, Any], init: Path | None) -> str:
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    begun = "random weights" if init is None else "the weights of an earlier training"
    name = next((name for name, preset in PRESETS.items() if preset == settings), "none, settings as below")
    chosen = settings.train
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [text-to-video, animatediff, motion-adapter, calotype]
---

# pocket-motion

A motion adapter of AnimateDiff's shape for the pocket model, trained on rendered scenes: objects that roll, slide,
circle, jump, fall and rise, and a camera that turns. Beside it, in `pytorch_lora_weights.safetensors`, low-rank updates
of the pocket model's attention through which it hears the words for motion.

```python
import calotype

calotype.load("pocket-motion")("{PROMPTS[0]}").frames[0]
```

## Training

Made by `calotype train pocket-motion`, calotype {__version__}, PyTorch {torch.__version__}.

| | |
| --- | --- |
| preset | {name} |
| seed | {settings.seed} |
| clips | {facts["clips"]:,} rendered, of {settings.clips.frames} frames, {settings.clips.captions} captions each; \
held-out combinations of motion, shape and colour |
| steps | {facts["steps"]:,} of {chosen.batch} clips |
| begun with | {begun} |
| time of training | {facts["minutes"]} minutes on {device} |
| validation loss | {facts["validation_loss"]:.4f} on held-out combinations |
| optimiser | AdamW, peak learning rate {chosen.learning_rate}, cosine decay, EMA {chosen.ema_decay} |

All settings:

```json
{json.dumps(settings.as_dict(), indent=2)}
```

## Licence

Apache-2.0. The clips that it was trained on were rendered by the code beside it; no other data was used.
"""
