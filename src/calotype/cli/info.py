"""``calotype info``: what a model is, read from its configurations and the headers of its weights."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

import calotype
from calotype.cli import console
from calotype.cli.model import local_folder, video_task
from calotype.core.config import read_json
from calotype.core.errors import ModelFilesError
from calotype.core.safetensors_header import read_header
from calotype.core.tensor_files import human_size


@dataclass(frozen=True)
class Weights:
    """One set of a component's weights; ``variant`` is empty for the plain one, pickles are only measured.

    ``shared`` of the parameters are in the files of a checkpoint's component, which ``bytes`` do not count.
    """

    variant: str
    bytes: int
    parameters: int | None
    dtypes: tuple[str, ...]
    shared: int = 0


@dataclass(frozen=True)
class Component:
    """A part of a model. ``weights`` has the plain set first; ``available`` says whether calotype has the class."""

    name: str
    library: str
    class_name: str
    available: bool
    weights: tuple[Weights, ...]


@dataclass(frozen=True)
class Model:
    """What a folder holds. ``tasks`` are those that calotype has a class for."""

    name: str
    folder: str
    class_name: str
    tasks: tuple[str, ...]
    components: tuple[Component, ...]


@console.plainly
def info(
    model: Annotated[str, typer.Argument(help="A folder, a Hub repository, or a bundled model.")] = "pocket",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what a model consists of: classes, parameters, sizes, and what it can do.

    Reads configurations and the headers of the weights, never the weights.
    """
    described = describe(model, _folder(model))
    if as_json:
        console.print_json(asdict(described))
    else:
        _print(described)


def _folder(model: str) -> Path:
    """The model's folder; of a repository only the small files are fetched, weights count if they are cached."""
    from calotype.core import hub

    place = local_folder(model)
    return place if place is not None else hub.snapshot(model, allow_patterns=["*.json", "**/*.json"])


def describe(name: str, folder: Path) -> Model:
    """What the folder of a pipeline, or of one component, holds."""
    from calotype.pipelines.bundled import all_parts, member_at

    index = folder / "model_index.json"
    member = member_at(folder)
    if member is not None:
        components = tuple(_component(part_name, *part) for part_name, part in all_parts(folder).items())
        return Model(name, str(folder.resolve()), member.pipeline, tasks_of(member.pipeline), components)
    if index.is_file():
        entries = read_json(index)
        components = tuple(
            _component(part, folder / part, str(value[0]), str(value[1]))
            for part, value in sorted(entries.items())
            if _is_component(value)
        )
    else:
        configs = [folder / file for file in ("config.json", "scheduler_config.json")]
        config = next((file for file in configs if file.is_file()), None)
        if config is None:
            raise ModelFilesError(
                f"{str(folder)!r} holds neither a pipeline (model_index.json) nor a single model (config.json)."
            )
        entries = read_json(config)
        library = "diffusers" if "_class_name" in entries else "transformers"
        kind = entries.get("_class_name") or (entries.get("architectures") or ["unknown"])[0]
        entries["_class_name"] = kind
        components = (_component(folder.name, folder, library, kind),)
    kind = str(entries.get("_class_name", "unknown"))
    return Model(name, str(folder.resolve()), kind, tasks_of(kind), components)


def _is_component(value: Any) -> bool:
    """Entries of ``model_index.json`` that name a library and a class; parts that are left out have nulls."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _component(
    name: str, folder: Path, library: str, class_name: str, completing: Path | None = None
) -> Component:
    ours = library == "diffusers" or library == "calotype" or library == class_name
    available = not ours or class_name in calotype.__all__
    return Component(name, library, class_name, available, _weights(folder, completing))


_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def _weights(folder: Path, completing: Path | None) -> tuple[Weights, ...]:
    """The sets of weights in a component's folder, the plain one first; pickles only where nothing better is.

    What none of them has and the component in ``completing`` does is shared with that one.
    """
    others = _sets(completing).get("", []) if completing is not None else []
    return tuple(_measured(variant, files, others) for variant, files in sorted(_sets(folder).items()))


def _sets(folder: Path) -> dict[str, list[Path]]:
    """The files of each variant in a folder."""
    sets: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        variant = ".".join(_SHARD.sub("", file.stem).split(".")[1:])
        sets.setdefault(variant, []).append(file)
    return sets


def _measured(variant: str, files: list[Path], others: list[Path]) -> Weights:
    size = sum(file.stat().st_size for file in files)
    if files[0].suffix != ".safetensors":
        return Weights(variant, size, None, ())
    own = {name: tensor for file in files for name, tensor in read_header(file).items()}
    shared = {
        name: tensor for file in others for name, tensor in read_header(file).items() if name not in own
    }
    dtypes = {tensor.dtype for tensor in (*own.values(), *shared.values())}
    more = sum(prod(tensor.shape) for tensor in shared.values())
    parameters = more + sum(prod(tensor.shape) for tensor in own.values())
    return Weights(variant, size, parameters, tuple(sorted(dtypes)), more)


OTHER_USES = {"TextToVideoSDPipeline": ("VideoToVideoSDPipeline",)}
"""A pipeline of videos -> the others that its checkpoints serve."""


def tasks_of(class_name: str) -> tuple[str, ...]:
    """What a pipeline's checkpoint serves for: the tasks of its family for which calotype has a class."""
    from calotype.pipelines.auto import FAMILIES
    from calotype.pipelines.connected import COMBINED

    class_name = COMBINED.get(class_name, class_name)
    for classes in FAMILIES.values():
        if class_name in classes.values():
            return tuple(dict.fromkeys(kind.task for kind in classes))
    if class_name in ("DDPMPipeline", "DDIMPipeline"):
        return ("unconditional generation",)
    if not class_name.endswith("Pipeline") or class_name not in calotype.__all__:
        return ()
    names = (class_name, *OTHER_USES.get(class_name, ()))
    found = [video_task(getattr(calotype, name)) for name in names]
    return tuple(task for task in found if task is not None)


def _print(model: Model) -> None:
    typer.echo(f"{model.name}: {model.class_name}")
    typer.echo(f"Folder:  {model.folder}")
    if model.class_name.endswith("Pipeline"):
        tasks = ", ".join(model.tasks) or "none: calotype does not have this class"
        typer.echo(f"Tasks:   {tasks}")
    rows = [("component", "class", "parameters", "dtype", "on disk", "")]
    for part in model.components:
        first = part.weights[0] if part.weights else None
        notes = [] if part.available else ["calotype does not have this class"]
        notes += [f"also {other.variant} ({human_size(other.bytes)})" for other in part.weights[1:]]
        notes += ["pickled, so not read"] if first and first.parameters is None else []
        notes += [f"{count(first.shared)} are the checkpoint's"] if first and first.shared else []
        rows.append(
            (
                part.name,
                part.class_name,
                count(first.parameters) if first and first.parameters is not None else "",
                " ".join(first.dtypes) if first else "",
                human_size(first.bytes) if first else "",
                "; ".join(notes),
            )
        )
    firsts = [part.weights[0] for part in model.components if part.weights]
    total = sum(weights.parameters or 0 for weights in firsts)
    rows.append(("total", "", count(total), "", human_size(sum(weights.bytes for weights in firsts)), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    typer.echo("")
    for row in rows:
        cells = [
            cell.rjust(width) if column in (2, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row[:5], widths, strict=True))
        ]
        typer.echo("  ".join([*cells, row[5]]).rstrip())


def count(number: int) -> str:
    """A number of parameters as people write it: ``859.5 M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
