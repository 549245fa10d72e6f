"""``calotype train``: the bundled model by the recipe that made it, and checkpoints on users' own pictures."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from calotype.cli.console import plainly
from calotype.cli.fine_tuning import add_to

_STAGES = "vae,tokenizer,text,latents,unet,export"


class Preset(StrEnum):
    """How much of it."""

    full = "full"
    cpu = "cpu"
    tiny = "tiny"


def train_pocket_model(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    stage: Annotated[str, typer.Option(help="Stages to run, separated by commas.")] = _STAGES,
    preset: Annotated[
        Preset, typer.Option(help="cpu: smaller, for a CPU; tiny: a dry run of seconds.")
    ] = Preset.full,
    work: Annotated[Path | None, typer.Option(help="Folder for checkpoints and data between stages.")] = None,
    vae: Annotated[
        Path | None, typer.Option(help="Folder of a trained VAE, in place of the stage vae.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Folder of a pocket checkpoint to go on from.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Time for all stages together.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoints in --work.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes that write captions.")] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="As in unet.batch=256.")] = None,
) -> None:
    """Train a model from scratch, the bundled one. The preset full is for a GPU; full and cpu need --max-minutes."""
    from calotype.training.recipes.pocket import train_pocket

    train_pocket(
        out,
        stages=stage.split(","),
        preset=preset.value,
        work=work,
        vae=vae,
        init=init,
        max_minutes=max_minutes,
        device=device,
        seed=seed,
        compile=compile,
        resume=resume,
        workers=workers,
        changes=set or [],
    )


train = typer.Typer(
    name="train",
    help="Train a model: a checkpoint on your own pictures, or the bundled one.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
add_to(train)
train.command("pocket")(plainly(train_pocket_model))
