"""``calotype train``: the bundled model by the recipe that made it, and checkpoints on users' own pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from calotype.cli.console import plainly
from calotype.cli.fine_tuning import add_to

_RECIPES = {
    "pocket": "Train the bundled model from scratch.",
    "pocket-motion": "Train the motion adapter that makes the bundled model's pictures move.",
    "pocket-family": "Train a small model of one task that shares the bundled model's parts.",
    "pocket-lora": "Teach the bundled model a shape that it never saw, from twenty pictures.",
}


class Preset(StrEnum):
    """How much of it."""

    full = "full"
    cpu = "cpu"
    tiny = "tiny"


def train_recipe(
    recipe: str,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    stage: Annotated[
        str | None,
        typer.Option(
            help="Stages to run, separated by commas; by default all. pocket: vae,tokenizer,text,latents,unet,export; "
            "pocket-motion: clips,motion,export; pocket-family: views,train,export; pocket-lora: pictures,train,export."
        ),
    ] = None,
    member: Annotated[
        str | None, typer.Option(help="pocket-family: which of the small models, such as pocket-inpaint.")
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
        typer.Option(
            help="pocket-motion, pocket-family: folder of the checkpoint that they are for, if not the bundled one."
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Folder of a pocket checkpoint, an adapter or a member's weights, to go on from."),
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Time for all stages together.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    resume: Annotated[bool, typer.Option(help="pocket: go on from the checkpoints in --work.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="pocket, pocket-family: processes that write captions.")
    ] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="As in train.batch=24.")] = None,
) -> None:
    """Run a recipe of this package. The preset full is for a GPU; full and cpu need --max-minutes."""
    from calotype.training.recipes import train as run_recipe

    options = {
        "stages": None if stage is None else stage.split(","),
        "member": member,
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
    run_recipe(recipe, out, options)


def _command(recipe: str) -> Callable[..., None]:
    """:func:`train_recipe` for one recipe, with the options that remain."""

    def run(**given: Any) -> None:
        train_recipe(recipe, **given)

    hints = get_type_hints(train_recipe, include_extras=True)
    _, *rest = inspect.signature(train_recipe).parameters.values()
    run.__annotations__ = {option.name: hints[option.name] for option in rest}
    typed = [option.replace(annotation=hints[option.name]) for option in rest]
    vars(run)["__signature__"] = inspect.Signature(typed)
    return run


train = typer.Typer(
    name="train",
    help="Train a model: a checkpoint on your own pictures, or the bundled ones.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
add_to(train)
for _name, _text in _RECIPES.items():
    train.command(_name, help=_text)(plainly(_command(_name)))
