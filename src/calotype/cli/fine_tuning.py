"""The commands of ``calotype train`` for users' own pictures: their options are the fields of the settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any

import typer

from calotype.cli.console import plainly, say
from calotype.training.fine_tuning.network_settings import (
    ControlNetSettings,
    InpaintingSettings,
    LcmSettings,
)
from calotype.training.fine_tuning.pixel_settings import UnconditionalSettings, VaeSettings
from calotype.training.fine_tuning.settings import (
    DreamBoothSettings,
    LearningSettings,
    LoraSettings,
    TextToImageSettings,
    TextualInversionSettings,
)

COMMANDS: dict[str, tuple[type[LearningSettings], str]] = {
    "text-to-image": (TextToImageSettings, "Fine-tune all of a checkpoint on captioned pictures."),
    "lora": (LoraSettings, "Train low-rank weights for a checkpoint on captioned pictures."),
    "textual-inversion": (TextualInversionSettings, "Learn a new word from a few pictures."),
    "dreambooth": (DreamBoothSettings, "Teach a checkpoint one thing by a rare word."),
    "unconditional": (UnconditionalSettings, "Train a model from scratch on pictures without captions."),
    "vae": (VaeSettings, "Fine-tune the autoencoder of a checkpoint on pictures."),
    "lcm": (LcmSettings, "Distil a checkpoint to a few steps."),
    "controlnet": (ControlNetSettings, "Train a ControlNet on pictures with a control picture each."),
    "inpainting": (InpaintingSettings, "Train a checkpoint to fill holes in pictures."),
}
"""Command -> its settings and what it does; the public function is ``train_`` and the command's name."""

_SHORT = {
    "pretrained_model_name_or_path": ("--model", "-m"),
    "output_dir": ("--out", "-o"),
    "validation_prompts": ("--validation-prompt",),
    "validation_images": ("--validation-image",),
    "validation_masks": ("--validation-mask",),
}
_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "tuple[str, ...]": list[str],
}


def add_to(app: typer.Typer) -> None:
    """Add the commands; their options may be written with underscores too."""
    settings = {"token_normalize_func": lambda name: name.replace("_", "-")}
    for name, (kind, text) in COMMANDS.items():
        app.command(name, help=text, context_settings=settings)(plainly(_command(name, kind)))


def _command(name: str, kind: type[LearningSettings]) -> Callable[..., None]:
    """A function whose parameters are the fields of the settings."""

    def run(**options: Any) -> None:
        import calotype
        from calotype.training.processes import current

        function = getattr(calotype, f"train_{name.replace('-', '_')}")
        folder = function(say=say, **options)
        if current().main:
            typer.echo(folder)

    parameters = [_parameter(entry) for entry in fields(kind)]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(entry: Any) -> inspect.Parameter:
    kind, _, optional = entry.type.partition(" | ")
    plain = f"--{entry.name.replace('_', '-')}"
    names = [f"{plain}/--no-{plain[2:]}"] if kind == "bool" else [plain, *_SHORT.get(entry.name, ())]
    text = entry.metadata["help"]
    if choices := entry.metadata["choices"]:
        text = f"{text} {' or '.join(choices)}."
    default = inspect.Parameter.empty if entry.default is MISSING else entry.default
    return inspect.Parameter(
        entry.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=[] if default == () else default,
        annotation=Annotated[
            _TYPES[kind] | None if optional else _TYPES[kind], typer.Option(*names, help=text)
        ],
    )
