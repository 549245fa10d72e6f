"""The one door: a checkpoint by its name, ready to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from calotype.core import hub
from calotype.core.config import read_json
from calotype.core.errors import ModelFilesError
from calotype.pipelines.bundled import BASE, LORA_FILE, load_own_parts, locate, member_at
from calotype.pipelines.components import INDEX, Loading, index_of, public_class
from calotype.pipelines.control import COMPONENTS, control_of
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.versatile import versatile


def default_device() -> torch.device:
    """The accelerator if there is one, otherwise the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def is_motion_adapter(place: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a motion adapter and no whole checkpoint."""
    config = Path(place) / "config.json"
    if not config.is_file() or (Path(place) / INDEX).is_file():
        return False
    return read_json(config).get("_class_name") == "MotionAdapter"


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

    LoRA weights beside the adapter become a part of the UNet's. Raises ``ModelFilesError`` if there is no adapter in
    the folder, and ``InputError`` if it is for another checkpoint.
    """
    from calotype.models.motion_adapter import MotionAdapter
    from calotype.pipelines.animatediff import AnimateDiffPipeline

    folder = Path(locate(adapter))
    if not is_motion_adapter(folder):
        raise ModelFilesError(f"There is no motion adapter in {folder}: name a folder with its config.json.")
    where, torch_dtype = _place(device, torch_dtype)
    motion = MotionAdapter.from_pretrained(folder, torch_dtype=torch_dtype)
    pipe = AnimateDiffPipeline.from_pretrained(
        locate(base), motion_adapter=motion, torch_dtype=torch_dtype, **kwargs
    )
    if (folder / LORA_FILE).is_file():
        _fuse(pipe, folder, "motion")
    return pipe.to(where)


def _fuse(pipe: Any, folder: Path, name: str) -> None:
    """Make the low-rank weights in a folder a part of the pipeline's."""
    pipe.load_lora_weights(folder, weight_name=LORA_FILE, adapter_name=name)
    pipe.fuse_lora()


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    torch_dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> Any:
    """A pipeline by the name of a bundled model (``"pocket"``, ``"pocket-motion"`` for videos, ``"pocket-inpaint"`` and
    others for other tasks), a folder, file or Hub repository, on ``device``. A folder with nothing but a motion
    adapter, or with the own parts of a member of the pocket family, is taken to be one for the pocket model.

    What it makes follows from what it is given: ``pipe("a fox")``, ``pipe("a fox", image=photo, strength=0.6)``,
    ``pipe("a fox", image=photo, mask_image=mask, control=[canny, depth])``; ``pipe.tasks`` lists what the checkpoint
    can do. ``controlnet`` and ``adapter`` (a model, or a list) are the models for ``control``.

    The default device is the accelerator if there is one; the default type is float16 there and float32 on the CPU.
    Other arguments are those of ``DiffusionPipeline.from_pretrained``.
    """
    where, torch_dtype = _place(device, torch_dtype)
    if os.path.isfile(name_or_path):
        pipe = DiffusionPipeline.from_single_file(name_or_path, torch_dtype=torch_dtype, **kwargs)
        found = versatile(type(pipe).__name__, ())
        return (pipe if found is None else found.from_pipe(pipe)).to(where)
    place = locate(name_or_path)
    if is_motion_adapter(place):
        return load_moving("pocket", place, device=device, torch_dtype=torch_dtype, **kwargs)
    member = member_at(place)
    own, base = Path(place), place
    if member is None:
        index = index_of(place, hub.HubOptions.take(dict(kwargs)))
        declared = DiffusionPipeline._class_for(index, place)
    else:
        loading = Loading(dtype=torch_dtype, device=where)
        kwargs |= load_own_parts(own, loading, kwargs)
        index, declared, base = {}, public_class(member.pipeline), locate(BASE)
    steering = {name: kwargs.get(name, (index.get(name) or [None, None])[1]) for name in COMPONENTS}
    kinds = tuple((name, control_of(what)) for name, what in steering.items() if what is not None)
    chosen: Any = versatile(declared.__name__, kinds) or declared
    kwargs.setdefault(
        "device_map", where
    )  # each model goes there by itself, and not all of them through the host
    pipe = chosen.from_pretrained(base, torch_dtype=torch_dtype, **kwargs).to(where)
    if member is not None:
        pipe.register_to_config(_name_or_path=os.fspath(name_or_path))
        if member.low_rank:
            _fuse(pipe, own, own.name)
        if member.usual:
            pipe.preferred = member.usual
    return pipe
