"""The one door: a checkpoint by its name, ready to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from calotype.core import hub
from calotype.core.config import read_json
from calotype.core.errors import ModelFilesError
from calotype.pipelines.components import INDEX
from calotype.pipelines.control import COMPONENTS, control_of
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.versatile import versatile

BUNDLED = {"pocket": Path(__file__).parents[1] / "pocket" / "weights"}
"""The checkpoints that come with the package, by name."""


def default_device() -> torch.device:
    """The accelerator if there is one, otherwise the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def locate(name_or_path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder of a bundled checkpoint; any other name or path as it is. A folder of the name takes precedence."""
    if os.path.exists(name_or_path) or os.fspath(name_or_path) not in BUNDLED:
        return name_or_path
    folder = BUNDLED[os.fspath(name_or_path)]
    if not folder.is_dir():
        raise ModelFilesError(
            f"The bundled checkpoint {name_or_path!r} is not in this installation ({folder})."
        )
    return folder


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    torch_dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> Any:
    """A pipeline by the name of a bundled checkpoint (``"pocket"``), a folder, file or Hub repository, on ``device``.

    What it makes follows from what it is given: ``pipe("a fox")``, ``pipe("a fox", image=photo, strength=0.6)``,
    ``pipe("a fox", image=photo, mask_image=mask, control=[canny, depth])``; ``pipe.tasks`` lists what the checkpoint
    can do. ``controlnet`` and ``adapter`` (a model, or a list) are the models for ``control``.

    The default device is the accelerator if there is one; the default type is float16 there and float32 on the CPU.
    Other arguments are those of ``DiffusionPipeline.from_pretrained``.
    """
    where = torch.device(device) if device is not None else default_device()
    if torch_dtype is None:
        torch_dtype = torch.float32 if where.type == "cpu" else torch.float16
    if os.path.isfile(name_or_path):
        pipe = DiffusionPipeline.from_single_file(name_or_path, torch_dtype=torch_dtype, **kwargs)
        found = versatile(type(pipe).__name__, ())
        return (pipe if found is None else found.from_pipe(pipe)).to(where)
    place = locate(name_or_path)
    index = read_json(hub.find_file(place, INDEX, options=hub.HubOptions.take(dict(kwargs))))
    declared = DiffusionPipeline._class_for(index, place)
    steering = {name: kwargs.get(name, (index.get(name) or [None, None])[1]) for name in COMPONENTS}
    kinds = tuple((name, control_of(what)) for name, what in steering.items() if what is not None)
    chosen = versatile(declared.__name__, kinds) or declared
    kwargs.setdefault(
        "device_map", where
    )  # each model goes there by itself, and not all of them through the host
    return chosen.from_pretrained(place, torch_dtype=torch_dtype, **kwargs).to(where)
