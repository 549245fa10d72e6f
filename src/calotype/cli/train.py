"""``calotype train``: models by the recipes that this package was made with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Recipe(StrEnum):
    """What can be trained."""

    pocket = "pocket"
    pocket_motion = "pocket-motion"


class Preset(StrEnum):
    """How much of it."""

    full = "full"
    cpu = "cpu"
    tiny = "tiny"


def train(
    recipe: Annotated[Recipe, typer.Argument(help="What to train.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    stage: Annotated[
        str | None,
        typer.Option(
            help="Stages to run, separated by commas; by default all. pocket: vae,tokenizer,text,latents,unet,export; "
            "pocket-motion: clips,motion,export."
        ),
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(help="cpu: smaller, for a CPU (pocket only); tiny: a dry run of seconds."),
    ] = Preset.full,
    work: Annotated[Path | None, typer.Option(help="Folder for checkpoints and data between stages.")] = None,
    vae: Annotated[
        Path | None, typer.Option(help="pocket: folder of a trained VAE, in place of the stage vae.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="pocket-motion: folder of the checkpoint that is to move, if not the bundled one."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Folder of a pocket checkpoint, or of an adapter for it, to go on from."),
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Time for all stages together.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    resume: Annotated[bool, typer.Option(help="pocket: go on from the checkpoints in --work.")] = False,
    workers: Annotated[int | None, typer.Option(help="pocket: processes that write captions.")] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="As in train.batch=24.")] = None,
) -> None:
    """Train a model from scratch: the bundled one, or the adapter that makes it move.

    The preset full is for a GPU; full and cpu need --max-minutes.
    """
    from calotype.training.recipes import train as run_recipe

    options = {
        "stages": None if stage is None else stage.split(","),
        "preset": preset.value,
        "work": work,
        "vae": vae,
        "base": base,
        "init": init,
        "max_minutes": max_minutes,
        "device": device,
        "seed": seed,
        "compile": compile,
        "resume": resume or None,
        "workers": workers,
        "changes": set or None,
    }
    run_recipe(recipe.value, out, options)
