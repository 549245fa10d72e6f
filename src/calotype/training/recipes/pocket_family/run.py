"""The stages of the family: views, the training of one member, its model card."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.files import write_text
from calotype.core.version import __version__
from calotype.training.checkpoint import Position
from calotype.training.gradients import precision
from calotype.training.loop import Batches, LoopSettings, compile_ahead, fit
from calotype.training.pace import Pace
from calotype.training.recipes.base import Base
from calotype.training.recipes.chunks import chunk_name
from calotype.training.recipes.pocket.networks import attention_of
from calotype.training.recipes.pocket.run import Run
from calotype.training.recipes.pocket_family.member import Member
from calotype.training.recipes.pocket_family.settings import FamilySettings, MemberSettings
from calotype.training.recipes.pocket_family.views import ViewSet, make_views
from calotype.training.sheets import write_sheet

STAGE_WEIGHTS = {"views": 4.0, "train": 8.0, "export": 0.01}
RESERVE = 12.0
"""Seconds of a limited run that are kept for the last inspection and for writing files."""
_MOST_WORKERS = 6
"""Processes for captions; the members compile at the same time."""
_VALIDATION_BATCHES = 4


def views_folder(run: Run) -> Path:
    return run.work / "views"


def prepare_views(settings: FamilySettings, run: Run, base: Base, tokenizer: Path) -> None:
    """Stage ``views``: leaves ``work/views``."""
    minutes = run.minutes_for("views")
    make_views(
        settings,
        views_folder(run),
        base,
        tokenizer,
        seconds=math.inf if minutes is None else 60 * minutes,
        workers=min(_MOST_WORKERS, run.workers) if settings.views.count > 10_000 else 0,
        say=run.say,
    )


def train_member(member: Member, settings: MemberSettings, run: Run, base: Base, init: Path | None) -> None:
    """Stage ``train``: leaves ``out/NAME``, and a sheet and the log beside it.

    Views that another process is making are waited for, as long as there is time.
    """
    chosen, device = settings.train, run.device
    torch.manual_seed(settings.seed)
    objective: Any = member.objective(settings, base)
    if init is not None:
        member.restore(objective, init)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        for part in (objective, base.unet, base.vae):
            part.to(memory_format=torch.channels_last)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    run.say(f"{member.name}: {trained:,} parameters are trained")
    autocast = torch.bfloat16 if device.type == "cuda" else None
    with attention_of(device):
        example = member.batches(ViewSet.blank(base, member.fields), base, settings)(0)
        compiles = run.compile and compile_ahead(objective, example, autocast, device, run.say)
        left = run.seconds_left
        views = ViewSet(views_folder(run), device, member.fields, patience=0.0 if left is None else left)
        views.wait(chunk_name(0))
        validation = views.validation()
        views.look()
        run.say(f"{len(views):,} views are there")
        minutes = None if chosen.steps is not None else run.minutes_for("train")
        inspection = _Inspection(member, settings, run, base, objective, views, validation, init)
        fit(
            objective,
            member.batches(views, base, settings),
            LoopSettings(
                pace=Pace(chosen.learning_rate, chosen.steps, minutes, chosen.warmup),
                weight_decay=chosen.weight_decay,
                ema_decay=chosen.ema_decay,
                autocast=autocast,
                compile=compiles,
                checkpoint_every=None,
                inspect_every=150.0,
            ),
            folder=inspection.folder,
            samples_per_batch=chosen.batch,
            inspect=inspection,
            say=run.say,
        )
    inspection.keep_log()


class _Inspection:
    """Validation loss and a sheet of held-out scenes at the averaged weights, which it saves."""

    def __init__(
        self,
        member: Member,
        settings: MemberSettings,
        run: Run,
        base: Base,
        objective: nn.Module,
        views: ViewSet,
        validation: ViewSet,
        init: Path | None,
    ) -> None:
        self._member, self._settings, self._run, self._base = member, settings, run, base
        self._objective, self._views, self._validation, self._init = objective, views, validation, init
        self._batches: Batches = member.batches(validation, base, settings)
        self.folder = run.work / f"{member.name}-training"
        # a log is of one training
        (self.folder / "log.jsonl").unlink(missing_ok=True)

    def __call__(self, position: Position) -> Mapping[str, float]:
        member, run = self._member, self._run
        member.save(self._objective, self._base, run.out / member.name)
        with precision(run.device, torch.bfloat16 if run.device.type == "cuda" else None):
            found = [self._objective(self._batches(number)) for number in range(_VALIDATION_BATCHES)]
            means = {
                name: torch.stack([each[name].float() for each in found]).mean().item() for name in found[0]
            }
            self._note(position, means)
            pictures, captions, columns = member.sheet(self._objective, self._base, self._validation)
        write_sheet(run.out / f"{member.name}.png", pictures, captions, columns)
        self.keep_log()
        return {f"validation_{name}": value for name, value in means.items()}

    def keep_log(self) -> None:
        """Copy the log to where results are."""
        shutil.copyfile(self.folder / "log.jsonl", self._run.out / f"{self._member.name}-log.jsonl")

    def _note(self, position: Position, means: Mapping[str, float]) -> None:
        """What the stage ``export`` is to know."""
        device = self._run.device
        facts = {
            "steps": position.step,
            "minutes": round(position.seconds / 60, 2),
            "views": len(self._views),
            "validation": dict(means),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "begun_with": self._member.begins_with
            if self._init is None
            else "the weights of an earlier training",
            "settings": asdict(self._settings),  # type: ignore[call-overload]
        }
        write_text(facts_of(self._run, self._member), json.dumps(facts))


def facts_of(run: Run, member: Member) -> Path:
    """Where a training leaves what the model card says of it."""
    return run.work / f"{member.name}.json"


def export(member: Member, run: Run) -> None:
    """Stage ``export``: the model card of ``out/NAME``. ``InputError`` if the member was not trained."""
    path = facts_of(run, member)
    for name in (member.name, *member.also):
        folder = run.out / name
        if not path.exists() or not folder.is_dir():
            raise InputError(f"There is no {name} in {run.out}: run the stage train first.")
        card = model_card(member, json.loads(path.read_text(encoding="utf-8")), name)
        write_text(folder / "README.md", card)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        run.say(f"{folder}: {size / 1e6:.2f} MB")


def model_card(member: Member, facts: Mapping[str, Any], name: str) -> str:
    """README.md with how the member was made, in the Hub's model card format."""
    settings = facts["settings"]
    chosen = settings["train"]
    validation = "\n".join(
        f"| validation {name} | {value:.4f} |" for name, value in facts["validation"].items()
    )
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [pocket, calotype]
---

# {name}

{member.summary}

## Training

Made by `calotype train pocket-family --member {member.name}`, calotype {__version__}, PyTorch {torch.__version__}.

| | |
| --- | --- |
| seed | {settings["seed"]} |
| views | {facts["views"]:,} rendered scenes of the pocket world; validated on held-out pairs of shape and colour |
| steps | {facts["steps"]:,} of {chosen["batch"]} ({facts["steps"] * chosen["batch"]:,} samples) |
| begun with | {facts["begun_with"]} |
| time of training | {facts["minutes"]} minutes on {facts["device"]} |
{validation}
| optimiser | AdamW, peak learning rate {chosen["learning_rate"]}, cosine decay, EMA {chosen["ema_decay"]} |

All settings:

```json
{json.dumps(settings, indent=2)}
```

## Licence

Apache-2.0. The pictures that it was trained on were rendered by the code beside it; no other data was used.
"""
