"""``calotype show``: how was this picture or video made?"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from calotype.cli import console
from calotype.utils import metadata
from calotype.utils.metadata import MetadataError, Settings


@console.plainly
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A picture or video.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print how a picture or video was made, from the settings that it carries.

    Reads what calotype writes, and the `parameters` text of other programs.
    """
    chunks = metadata.read_chunks(file)
    if metadata.CHUNK in chunks:
        settings = Settings.from_json(chunks[metadata.CHUNK])
        rows, entries = _rows(settings), {"source": "calotype", **asdict(settings)}
    elif metadata.PLAIN_CHUNK in chunks:
        read = metadata.from_parameters(chunks[metadata.PLAIN_CHUNK])
        rows, entries = dict(read), {"source": "parameters", **read}
    else:
        raise MetadataError(
            f"{os.fspath(file)!r} does not say how it was made: it was written without settings, or a program that "
            f"saved it again has dropped them."
        )
    if as_json:
        console.print_json({"file": str(file), **entries})
        return
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        first, *more = str(value).splitlines() or [""]
        typer.echo(f"{name:<{width}}  {first}")
        for line in more:
            typer.echo(f"{'':<{width}}  {line}")


_ADAPTERS = {"LoRA": "lora", "IP-Adapter": "ip_adapter", "Its picture": "ip_image", "Words": "embedding"}


def _named(made: Settings, key: str) -> str | None:
    """The files of adapters, and how strongly they act where it is not fully."""
    entries = made.inputs.get(key, ())
    scales = ["" if one.get("scale", 1.0) == 1.0 else f" ({one['scale']:g})" for one in entries]
    return ", ".join(one["file"] + scale for one, scale in zip(entries, scales, strict=True)) or None


def _rows(made: Settings) -> dict[str, Any]:
    """The settings as a person wants to read them; what was not set is left out."""
    rows = {
        "Prompt": made.prompt,
        "Negative prompt": made.negative_prompt,
        "Model": made.model,
        "Commit": made.revision,
        "Fingerprint": made.fingerprint and made.fingerprint[:16],
        "Pipeline": made.pipeline,
        "Steps": made.steps,
        "Guidance": made.guidance,
        "Seed": made.seed,
        "Image": made.inputs.get("image", {}).get("file"),
        "Mask": made.inputs.get("mask", {}).get("file"),
        "Strength": made.inputs.get("strength"),
        "Control": ", ".join(entry["file"] for entry in made.inputs.get("control", ())) or None,
        "ControlNet": ", ".join(entry["model"] for entry in made.inputs.get("controlnet", ())) or None,
        "Frames": made.inputs.get("frames"),
        "Pace": f"{made.inputs['fps']:g} frames a second" if "fps" in made.inputs else None,
        **{name: _named(made, key) for name, key in _ADAPTERS.items()},
        "Scheduler": f"{metadata.sampler_name(made.scheduler)} ({made.scheduler.get('class')})",
        "Size": f"{made.size[0]} x {made.size[1]}",
        "Computed": f"in {made.dtype} on {made.device}",
        "Versions": ", ".join(f"{name} {version}" for name, version in made.versions.items()) or None,
    }
    return {name: value for name, value in rows.items() if value is not None}
