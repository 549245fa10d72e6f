"""The one door: a checkpoint by its name, ready to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import ModelFilesError
from calotype.pipelines.pipeline import DiffusionPipeline

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
    """A pipeline by the name of a bundled checkpoint (``"pocket"``), a folder or a Hub repository, on ``device``.

    The default device is the accelerator if there is one; the default type is float16 there and float32 on the CPU.
    Other arguments are those of ``DiffusionPipeline.from_pretrained``.
    """
    place = torch.device(device) if device is not None else default_device()
    if torch_dtype is None:
        torch_dtype = torch.float32 if place.type == "cpu" else torch.float16
    pipe = DiffusionPipeline.from_pretrained(locate(name_or_path), torch_dtype=torch_dtype, **kwargs)
    return pipe.to(place)
