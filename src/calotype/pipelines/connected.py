"""Checkpoints that belong together: a decoder's model card names the repository of its prior."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from calotype.core import hub
from calotype.core.config import init_parameters
from calotype.core.errors import ModelFilesError

CARD = "README.md"

COMBINED = {
    f"Kandinsky{version}{task}Pipeline": f"Kandinsky{version}{task}CombinedPipeline"
    for version in ("", "V22")
    for task in ("", "Img2Img", "Inpaint")
}
"""The class of a decoder -> the class of the same task that samples the prior, too."""


def lacking(cls: type, prefix: str, present: Any) -> list[str]:
    """The components whose names begin with ``prefix_`` that are not ``present``."""
    return [name for name in init_parameters(cls) if name.startswith(f"{prefix}_") and name not in present]


def named_in_card(origin: str | os.PathLike[str], key: str, options: hub.HubOptions) -> str | Path | None:
    """The checkpoint that the metadata of a model card at ``origin`` have under ``key``; a folder if there is one.

    A relative folder is looked for beside the card first, then in the working directory. None where no card names one.
    """
    import yaml
    from huggingface_hub import metadata_load

    path = hub.try_find_file(origin, CARD, options=options)
    if path is None:
        return None
    try:
        found = (metadata_load(path) or {}).get(key)
    except (ValueError, yaml.YAMLError) as error:
        raise ModelFilesError(f"The metadata at the top of {path} are damaged: {error}") from error
    name = found[0] if isinstance(found, list) and found else found
    if not isinstance(name, str):
        return None
    for folder in (Path(path).parent / name, Path(name)):
        if folder.is_dir():
            return folder
    return name


def connected_components(
    cls: type,
    prefix: str,
    origin: str | os.PathLike[str],
    present: Any,
    options: hub.HubOptions,
    **loading: Any,
) -> dict[str, Any]:
    """The components ``prefix_…`` that are not ``present`` at ``origin``, from the checkpoint that its card names.

    Raises ``ModelFilesError`` where the card names none, or one that lacks them.
    """
    from calotype.pipelines.pipeline import DiffusionPipeline

    wanted = lacking(cls, prefix, present)
    if not wanted:
        return {}
    place = named_in_card(origin, prefix, options)
    if place is None:
        raise ModelFilesError(
            f"{cls.__name__} needs {', '.join(wanted)}, and the metadata of {CARD} in {os.fspath(origin)} name no "
            f"checkpoint under `{prefix}:`; name it there, or pass {wanted[0]}=… and the others."
        )
    other = DiffusionPipeline.from_pretrained(place, **loading, **vars(replace(options, revision=None)))
    found = {f"{prefix}_{name}": value for name, value in other.components.items()}
    if missing := [name for name in wanted if name not in found]:
        raise ModelFilesError(
            f"{os.fspath(place)}, which {CARD} in {os.fspath(origin)} names under `{prefix}:`, is a "
            f"{type(other).__name__} and has no {missing[0].removeprefix(prefix + '_')!r}."
        )
    return {name: found[name] for name in wanted}
