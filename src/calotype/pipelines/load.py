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
LORA_FILE = "pytorch_lora_weights.safetensors"
MOVING = {"pocket-motion": ("pocket", Path(__file__).parents[1] / "pocket" / "motion_weights")}
"""The motion adapters that come with it: the checkpoint that each is for, and its folder."""


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


def _place(
    device: str | torch.device | None, torch_dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    where = torch.device(device) if device is not None else default_device()
    return where, torch_dtype or (torch.float32 if where.type == "cpu" else torch.float16)


def load_moving(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    torch_dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> Any:
    """An ``AnimateDiffPipeline`` of the checkpoint ``base``, moved by the motion adapter in the folder ``adapter``.

    LoRA weights beside the adapter become a part of the UNet's. Raises ``ModelFilesError`` if the folder is not there.
    """
    from calotype.models.motion_adapter import MotionAdapter
    from calotype.pipelines.animatediff import AnimateDiffPipeline

    folder = Path(adapter)
    if not folder.is_dir():
        raise ModelFilesError(f"The motion adapter is not in this installation ({folder}).")
    where, torch_dtype = _place(device, torch_dtype)
    motion = MotionAdapter.from_pretrained(folder, torch_dtype=torch_dtype)
    pipe = AnimateDiffPipeline.from_pretrained(
        locate(base), motion_adapter=motion, torch_dtype=torch_dtype, **kwargs
    )
    if (folder / LORA_FILE).is_file():
        pipe.load_lora_weights(folder, weight_name=LORA_FILE, adapter_name="motion")
        pipe.fuse_lora()
    return pipe.to(where)


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    torch_dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> Any:
    """A pipeline by the name of a bundled checkpoint (``"pocket"``, and ``"pocket-motion"`` for videos), a folder, file
    or Hub repository, on ``device``.

    What it makes follows from what it is given: ``pipe("a fox")``, ``pipe("a fox", image=photo, strength=0.6)``,
    ``pipe("a fox", image=photo, mask_image=mask, control=[canny, depth])``; ``pipe.tasks`` lists what the checkpoint
    can do. ``controlnet`` and ``adapter`` (a model, or a list) are the models for ``control``.

    The default device is the accelerator if there is one; the default type is float16 there and float32 on the CPU.
    Other arguments are those of ``DiffusionPipeline.from_pretrained``.
    """
    if os.fspath(name_or_path) in MOVING and not os.path.exists(name_or_path):
        base, folder = MOVING[os.fspath(name_or_path)]
        return load_moving(base, folder, device=device, torch_dtype=torch_dtype, **kwargs)
    where, torch_dtype = _place(device, torch_dtype)
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
    return chosen.from_pretrained(place, torch_dtype=torch_dtype, **kwargs).to(where)
