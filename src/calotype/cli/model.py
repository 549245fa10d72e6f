"""From what the options say to a loaded pipeline: device, number format, scheduler, and which model it is."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.core.errors import InputError

if TYPE_CHECKING:
    import torch

DTYPES = {"float32": "float32", "fp32": "float32", "float16": "float16", "fp16": "float16", "half": "float16"}
DTYPES |= {"bfloat16": "bfloat16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Identity:
    """Which weights these are: the commit of a Hub repository, or the fingerprint of a folder."""

    revision: str | None = None
    fingerprint: str | None = None


def choose_device(name: str | None) -> torch.device:
    """The device of this name, or the best that this machine has; ``InputError`` if it has no such device."""
    import torch

    from calotype.pipelines.load import default_device

    if name is None:
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r} is no device: use cpu, cuda, cuda:1 or mps.") from None
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 1)
    if (device.index or 0) >= present:
        raise InputError(
            f"--device {name}: this machine has no such device that PyTorch {torch.__version__} can use; leave "
            f"--device out to take the best one there is."
        )
    return device


def choose_dtype(name: str | None) -> torch.dtype | None:
    """The number format of this name; None leaves the choice to the library."""
    import torch

    if name is None:
        return None
    if name not in DTYPES:
        raise InputError(f"--dtype {name!r} is no number format: use float32, float16 or bfloat16.")
    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype


def makes_videos(model: str, revision: str | None = None) -> bool:
    """Whether the pipeline of a model makes videos: motion adapters do, single files do not, else its index says."""
    from calotype.core import hub
    from calotype.core.config import read_json
    from calotype.pipelines.bundled import locate, member_at
    from calotype.pipelines.components import INDEX, public_class
    from calotype.pipelines.load import is_motion_adapter

    if Path(model).is_file():
        return False
    place = locate(model)
    if is_motion_adapter(place):
        return True
    member = member_at(place)
    options = hub.HubOptions() if revision is None else hub.HubOptions(revision=revision)
    name = (
        read_json(hub.find_file(place, INDEX, options=options)).get("_class_name")
        if member is None
        else member.pipeline
    )
    return video_task(public_class(str(name))) is not None


def video_task(pipeline: Any) -> str | None:
    """What a pipeline, or its class, makes videos of; None where it makes pictures."""
    accepted = inspect.signature(pipeline.__call__).parameters
    if "video" in accepted:
        return "video-to-video"
    if frames_argument(pipeline) is None:
        return None
    return "image-to-video" if "image" in accepted else "text-to-video"


def frames_argument(pipeline: Any) -> str | None:
    """What a pipeline, or its class, calls the number of frames; None where it takes none."""
    accepted = inspect.signature(pipeline.__call__).parameters
    return next((name for name in ("num_frames", "video_length") if name in accepted), None)


def identify(model: str, index: str = "model_index.json") -> Identity:
    """Which weights a loaded model has; ``index`` is a file that it has in any case."""
    from calotype.core import hub
    from calotype.pipelines.bundled import folders_of
    from calotype.utils.fingerprint import fingerprint

    if folders := folders_of(model):
        return Identity(fingerprint=fingerprint(*folders))
    path = hub.find_file(model, index, options=hub.HubOptions(local_files_only=True))
    return Identity(revision=hub.commit_of(path))


def local_folder(model: str) -> Path | None:
    """The folder on this machine that a model's name means, or None for a Hub repository."""
    from calotype.pipelines.bundled import locate

    place = Path(locate(model))
    return place if place.is_dir() else None
