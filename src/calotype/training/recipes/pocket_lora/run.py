"""The stages: pictures of the new shape and the checkpoint's own, the training that users call, what is shipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.core.files import write_text
from calotype.core.version import __version__
from calotype.pocket.lesson import save_pictures, write_lesson, write_metadata
from calotype.pocket.prompts import prompts
from calotype.training.recipes.pocket_lora.settings import LoraLessonSettings

Say = Callable[[str], None]
FILE = "pytorch_lora_weights.safetensors"
_DRAWN_AT_A_TIME = 50


def name_of(settings: LoraLessonSettings) -> str:
    """The name of what is made."""
    return f"pocket-lora-{settings.shape}"


def draw_pictures(
    settings: LoraLessonSettings, base: Path, work: Path, device: torch.device, say: Say
) -> None:
    """Stage ``pictures``: leaves ``work/SHAPE``, renders, and ``work/prior``, which the checkpoint drew."""
    for folder in (work / settings.shape, work / "prior"):
        shutil.rmtree(folder, ignore_errors=True)
    write_lesson(
        work / settings.shape,
        settings.shape,
        settings.pictures,
        settings.seed,
        device,
        supersample=settings.supersample,
    )
    say(f"{settings.pictures} pictures of the shape {settings.shape!r}")
    draw_prior(settings, base, work / "prior", device)
    say(f"{settings.prior} pictures of what the checkpoint knows, drawn by itself")


def draw_prior(settings: LoraLessonSettings, base: Path, folder: Path, device: torch.device) -> None:
    """Write pictures that the checkpoint draws of the shapes, colours and floors that it was trained on."""
    from calotype.pipelines.pipeline import DiffusionPipeline

    pipe: Any = DiffusionPipeline.from_pretrained(base).to(device)
    pipe.set_progress_bar_config(disable=True)
    texts = [prompt.text for prompt in prompts("train", settings.prior, settings.seed)]
    names = [f"prior-{number:03d}.png" for number in range(1, len(texts) + 1)]
    for first in range(0, len(texts), _DRAWN_AT_A_TIME):
        part = slice(first, first + _DRAWN_AT_A_TIME)
        seeds = [settings.seed * 1_000_003 + first + i for i in range(len(texts[part]))]
        drawn = pipe(
            texts[part],
            num_inference_steps=settings.prior_steps,
            guidance_scale=settings.prior_guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        save_pictures(folder, names[part], (drawn.float().clamp(0, 1) * 255).round().byte().cpu())
    write_metadata(folder, {name: [text] for name, text in zip(names, texts, strict=True)})


def teach(settings: LoraLessonSettings, base: Path, work: Path, device: torch.device, say: Say) -> None:
    """Stage ``train``: leaves ``work/lora``. ``InputError`` if there are no pictures yet."""
    from calotype.training.fine_tuning.recipes import train_lora

    if not (work / "prior" / "metadata.jsonl").is_file():
        raise InputError(f"There are no pictures in {work}: run the stage pictures first.")
    shutil.rmtree(work / "lora", ignore_errors=True)
    train_lora(
        pretrained_model_name_or_path=base,
        train_data_dir=work / settings.shape,
        prior_data_dir=work / "prior",
        prior_loss_weight=settings.prior_loss_weight,
        output_dir=work / "lora",
        rank=settings.rank,
        target_modules=settings.targets,
        train_batch_size=settings.batch,
        max_train_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler="cosine",
        lr_warmup_steps=settings.warmup,
        adam_weight_decay=settings.weight_decay,
        proportion_empty_prompts=settings.empty_prompts,
        mixed_precision="bf16" if device.type == "cuda" else "no",
        checkpointing_steps=None,
        seed=settings.seed,
        device=device.type,
        say=say,
    )


def export(settings: LoraLessonSettings, work: Path, out: Path, say: Say) -> None:
    """Stage ``export``: the weights in float16 and their card. ``InputError`` if there are none yet."""
    from safetensors.torch import load_file

    from calotype import StableDiffusionPipeline

    trained = work / "lora" / FILE
    if not trained.is_file():
        raise InputError(f"There are no low-rank weights in {trained.parent}: run the stage train first.")
    layers = {
        key.removeprefix("unet."): value.half().contiguous() for key, value in load_file(trained).items()
    }
    folder = out / name_of(settings)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    log = (work / "lora" / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    write_text(folder / "README.md", model_card(settings, json.loads(log[-1])))
    say(f"{folder / FILE}: {(folder / FILE).stat().st_size / 1e6:.2f} MB")


def model_card(settings: LoraLessonSettings, last: dict[str, Any]) -> str:
    """README.md with how the weights were made, in the Hub's model card format."""
    shape, name = settings.shape, name_of(settings)
    return f"""---
license: apache-2.0
library_name: diffusers
tags: [pocket, calotype, lora]
---

# {name}

Low-rank weights that teach the pocket model a shape that it never saw: ask for "a red {shape} on grass".

```python
pipe = calotype.load("pocket")
pipe.load_lora_weights("{name}")
```

## Training

Made by `calotype train pocket-lora`, calotype {__version__}, PyTorch {torch.__version__}: {settings.pictures} rendered
pictures of the shape with captions, and beside them {settings.prior} pictures that the pocket model drew of what it
knows, so that it does not forget it. One floor for each colour was left out, to be asked for afterwards.

| | |
| --- | --- |
| seed | {settings.seed} |
| rank | {settings.rank}, of {settings.targets} |
| steps | {settings.steps:,} of {settings.batch} pictures of the shape and as many others |
| time of training | {last["seconds"]:.0f} s |
| loss at the end | {last["loss"]:.4f} |
| optimiser | AdamW, peak learning rate {settings.learning_rate}, cosine decay |

All settings:

```json
{json.dumps(asdict(settings), indent=2)}
```

## Licence

Apache-2.0. The pictures that it was trained on were rendered by the code beside it or drawn by the pocket model; no
other data was used.
"""
