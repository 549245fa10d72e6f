"""From a training checkpoint to the folder that ships: a Stable Diffusion pipeline in float16 and its model card."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import torch

from calotype.core.errors import InputError
from calotype.core.files import replacing, write_text
from calotype.core.version import FORMAT_VERSION, __version__
from calotype.training.checkpoint import Position, resume_training
from calotype.training.ema import EMA
from calotype.training.loop import LoopSettings, optimizer_for
from calotype.training.pace import Pace
from calotype.training.recipes.pocket.networks import build_scheduler
from calotype.training.recipes.pocket.run import Run
from calotype.training.recipes.pocket.settings import PRESETS, PROMPTS, PocketSettings
from calotype.training.recipes.pocket.stages import build_objective
from calotype.training.sheets import write_sheet

MAX_BYTES = 20_000_000
"""The whole folder may weigh this much."""
_PART_BYTES = 15_000_000
"""Archives in ``out`` are cut into parts of at most about this much."""
_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(settings: PocketSettings, run: Run) -> Path:
    """Stage ``export``: leaves ``work/pocket``, and in ``out`` archives of it and a sheet made from it.

    Raises ``InputError`` if an earlier stage has not run or the folder would weigh more than 20 MB.
    """
    folder = run.work / "pocket"
    if folder.exists():
        shutil.rmtree(folder)
    position, pictures = _write_unet(settings, run, folder)
    for part in ("tokenizer", "text_encoder", "vae"):
        shutil.copytree(run.work / part, folder / part)
    build_scheduler(settings).save_pretrained(folder / "scheduler")
    index = {**_INDEX, "_diffusers_version": FORMAT_VERSION}
    write_text(folder / "model_index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")
    write_text(folder / "README.md", _model_card(settings, run, folder, position, pictures))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    run.say(f"exported {folder}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise InputError(
            f"The exported folder weighs {size:,} bytes, more than {MAX_BYTES:,}: make the networks smaller."
        )
    archives = pack(folder, run.out, _PART_BYTES)
    run.say(
        f"packed into {', '.join(path.name for path in archives)}; `tar xf` each to have the folder again"
    )
    try:
        _sample(settings, run, folder)
    except Exception as error:  # the model is saved; its sheet is a convenience
        run.say(f"WARNING: the sample sheet failed: {type(error).__name__}: {error}"[:1500])
    return folder


def _write_unet(settings: PocketSettings, run: Run, folder: Path) -> tuple[Position, int]:
    """The UNet at the averaged weights, in float16; returns where training ended, on what data."""
    path = run.work / "unet-training" / "training.pt"
    if not path.exists():
        raise InputError(f"There is no {path}: run the stage unet first.")
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["settings"]
    objective = build_objective(settings, run).cpu()
    ema = EMA(objective, settings.unet.ema_decay)
    optimizer = optimizer_for(objective, LoopSettings(Pace(settings.unet.learning_rate, steps=1)))
    position = resume_training(path, objective, optimizer, ema, stored)
    with ema.applied(), torch.no_grad():
        unet = objective.unet.half().to(memory_format=torch.contiguous_format)
        unet.save_pretrained(folder / "unet")
    return position, stored["pictures"]


def pack(folder: Path, out: Path, part_bytes: int) -> list[Path]:
    """Archives ``name-1.tar``, ... in ``out`` that together hold the folder, none much above ``part_bytes``.

    A file that is larger than that has an archive of its own.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts: list[list[Path]] = []
    room = 0
    for file in sorted(files, key=lambda path: -path.stat().st_size):
        size = file.stat().st_size + 1024
        if not parts or size > room:
            parts.append([])
            room = part_bytes
        parts[-1].append(file)
        room -= size
    archives = []
    for number, part in enumerate(parts, start=1):
        archive = out / f"{folder.name}-{number}.tar"
        with replacing(archive) as temporary, tarfile.open(temporary, "w") as tar:
            for file in part:
                tar.add(file, arcname=file.relative_to(folder.parent), filter=_anonymous)
        archives.append(archive)
    return archives


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _sample(settings: PocketSettings, run: Run, folder: Path) -> None:
    """A sheet made by the public pipeline from the exported folder."""
    from calotype import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(run.device)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        list(PROMPTS),
        num_inference_steps=settings.sampling_steps,
        guidance_scale=settings.guidance,
        generator=[torch.Generator().manual_seed(settings.seed + i) for i in range(len(PROMPTS))],
        output_type="pt",
    ).images
    write_sheet(run.out / "samples.png", images, PROMPTS)


def _model_card(settings: PocketSettings, run: Run, folder: Path, position: Position, pictures: int) -> str:
    """README.md with how the model was made, in the Hub's model card format."""
    sizes = {
        part.name: sum(_elements(file) for file in part.glob("*.safetensors"))
        for part in sorted(folder.iterdir())
        if part.is_dir() and any(part.glob("*.safetensors"))
    }
    vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    seen = position.step * settings.unet.batch
    begun_with = "random weights" if run.init is None else "the weights of an earlier training"
    table = "\n".join(f"| {name} | {count:,} |" for name, count in sizes.items())
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, stable-diffusion, calotype]
---

# pocket

A small text-to-image model of Stable Diffusion's shape: CLIP text encoder, UNet and KL autoencoder, trained from
scratch on rendered scenes of one to three simple objects, {settings.pixels}x{settings.pixels} pixels. It knows the
words of its grammar and nothing else of the world. The text encoder first learned to read: to tell from a caption
alone what stands where and what happens.

```python
import calotype

calotype.load("pocket")("{PROMPTS[0]}").images[0]
```

## Training

Made by `calotype train pocket`, calotype {__version__}, PyTorch {torch.__version__}.

| | |
| --- | --- |
| preset | {_preset_name(settings)} |
| seed | {settings.seed} |
| pictures | {pictures:,} rendered scenes, {settings.data.captions} captions each; held-out pairs of shape and colour |
| steps | {position.step:,} of {settings.unet.batch} ({seen:,} samples) |
| begun with | {begun_with} |
| time of the UNet's training | {position.seconds / 60:.1f} minutes on {device}, compilation included |
| objective | {settings.unet.prediction}, scaled linear betas up to 0.02 |
| optimiser | AdamW, peak learning rate {settings.unet.learning_rate}, cosine decay, EMA {settings.unet.ema_decay} |
| captions dropped | {settings.unet.caption_dropout:.0%} |
| latents | 1/{2 ** (len(settings.vae.channels) - 1)} of the side, {settings.vae.latent_channels} channels, \
standardised per channel, scaling factor {vae["scaling_factor"]} |

| part | parameters |
| --- | ---: |
{table}

All settings:

```json
{json.dumps(settings.as_dict(), indent=2)}
```

## Licence

Apache-2.0. The pictures that it was trained on were rendered by the code beside it; no other data was used.
"""


def _preset_name(settings: PocketSettings) -> str:
    return next((name for name, preset in PRESETS.items() if preset == settings), "none, settings as below")


def _elements(path: Path) -> int:
    from safetensors import safe_open

    total = 0
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            count = 1
            for side in file.get_slice(key).get_shape():
                count *= side
            total += count
    return total
