"""From a request to a pipeline that is ready, and from that to pictures and videos that can be made again."""

from __future__ import annotations

import inspect
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from calotype.cli import adapters, console, files, pictures
from calotype.cli.progress import Reporter
from calotype.cli.request import Request
from calotype.core.errors import InputError, UnknownClassError
from calotype.core.version import __version__
from calotype.utils import metadata
from calotype.utils.metadata import Settings

if TYPE_CHECKING:
    import PIL.Image


USUAL_PACE = 8
"""Frames a second of a video where neither the options nor the model say."""

AT_ONCE = 8
"""Frames that are decoded at once where a pipeline would decode them all, however many there are."""


class Ready(NamedTuple):
    """A pipeline, the arguments of every call of it, and the settings that all pictures of the run share.

    ``pace`` is frames a second of what it makes; None for pictures.
    """

    pipe: Any
    arguments: dict[str, Any]
    shared: dict[str, Any]
    pace: float | None = None


def prepare(asked: Request) -> Ready:
    """Open the pictures that go in, load the models, and see whether they go together."""
    import torch

    import calotype
    from calotype.cli import model as models
    from calotype.schedulers import names

    device = models.choose_device(asked.device)
    dtype = models.choose_dtype(asked.dtype)
    if isinstance(asked.scheduler, str):
        names.find(asked.scheduler)  # refused before anything is loaded if there is no such name
    given = pictures.opened(asked)
    console.say(f"Loading {asked.model} on {device}.")
    at = {"revision": asked.revision} if asked.revision else {}
    with console.bars_on_terminals():
        pipe = calotype.load(asked.model, device=device, torch_dtype=dtype, **at)
        models_beside = pictures.steering_models(asked, device, pipe.dtype)
    accepted = inspect.signature(pipe.__call__).parameters
    task = models.video_task(pipe)
    if task == "video-to-video":
        raise InputError(
            f"{asked.model} is a {type(pipe).__name__}, which begins with a video; that is for Python alone so far."
        )
    if "prompt" not in accepted and (asked.prompts or task is None):
        raise InputError(
            f"{asked.model} is a {type(pipe).__name__}, which takes no prompt; "
            + ("leave it out." if task else "generate needs a model that does.")
        )
    if task == "image-to-video" and asked.image is None:
        raise InputError(
            f"{asked.model} is a {type(pipe).__name__}, which moves a picture; name that with --image."
        )
    if "prompt" in accepted and not asked.prompts:
        raise InputError(
            f"Say what to show beside --image: {asked.model} is a {type(pipe).__name__}, which reads a prompt, too."
        )
    arguments = {**_optional(asked), **pictures.arguments(asked, given, models_beside)}
    pace = None
    if task is not None:
        pace, moving = _moving(asked, str(models.frames_argument(pipe)), accepted)
        arguments |= moving
    if without := [name for name in arguments if name not in accepted]:
        raise InputError(
            f"{asked.model} is a {type(pipe).__name__}, which has no {' and no '.join(without)}."
        )
    if isinstance(asked.scheduler, str):
        pipe.scheduler = calotype.scheduler_named(asked.scheduler, pipe.scheduler.config)
    elif isinstance(asked.scheduler, dict):
        pipe.scheduler = _recorded_scheduler(asked.scheduler)
    pipe.set_progress_bar_config(disable=True)
    added = adapters.load(pipe, asked)
    identity = models.identify(asked.model)
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    usual = pipe.usual(arguments) if hasattr(pipe, "usual") else {k: p.default for k, p in accepted.items()}
    guidance = usual.get("guidance_scale") if asked.guidance is None else asked.guidance
    versions = {"calotype": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if "transformers" in sys.modules:  # text encoders are its classes
        versions["transformers"] = sys.modules["transformers"].__version__
    shared = {
        "model": asked.model,
        "negative_prompt": asked.negative,
        "steps": asked.steps,
        "guidance": guidance,
        "scheduler": {"class": type(pipe.scheduler).__name__, "config": scheduler},
        "pipeline": type(pipe).__name__,
        "revision": identity.revision,
        "fingerprint": identity.fingerprint,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "device": str(device),
        "versions": versions,
        "inputs": pictures.record(asked, given) | added,
    }
    return Ready(pipe, arguments, shared, pace)


def _moving(
    asked: Request, frames: str, accepted: Mapping[str, inspect.Parameter]
) -> tuple[float, dict[str, Any]]:
    """Frames a second, and what a pipeline of videos is told of the frames, of which it calls the count ``frames``."""
    told = next((name for name in ("fps", "target_fps") if name in accepted), None)
    usual = USUAL_PACE if told is None else accepted[told].default
    found: dict[str, Any] = {"output_type": "pil"}
    if asked.frames is not None:
        found[frames] = asked.frames
    if asked.fps is not None and told is not None:
        found[told] = asked.fps
    if "decode_chunk_size" in accepted and accepted["decode_chunk_size"].default is None:
        found["decode_chunk_size"] = AT_ONCE
    return (usual if asked.fps is None else asked.fps), found


def _recorded_scheduler(recorded: dict[str, Any]) -> Any:
    import calotype

    name = recorded.get("class")
    if name not in calotype.__all__ or not str(name).endswith("Scheduler") or name == "Scheduler":
        raise UnknownClassError(
            f"The picture was made with the scheduler {name}, which this calotype does not have; choose another with "
            f"--scheduler."
        )
    return getattr(calotype, name).from_config(recorded.get("config") or {})


def _optional(asked: Request) -> dict[str, Any]:
    """The arguments of the pipeline's call that were asked for."""
    arguments = {
        "negative_prompt": asked.negative,
        "guidance_scale": asked.guidance,
        "width": asked.width,
        "height": asked.height,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def picture(
    ready: Ready, asked: Request, prompt: str, seed: int, progress: Reporter
) -> list[PIL.Image.Image]:
    """One picture, or the frames of one video.

    It is alone in its batch and has a generator of its own, so that it can be made again alone.
    """
    import torch

    accepted = inspect.signature(ready.pipe.__call__).parameters
    arguments = {**({"prompt": prompt} if "prompt" in accepted else {}), **ready.arguments}
    if "callback_on_step_end" in accepted:

        def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress.step(step + 1, pipe.num_timesteps)
            return {}

        arguments |= {"callback_on_step_end": step_done, "callback_on_step_end_tensor_inputs": []}
    elif "callback" in accepted:
        arguments["callback"] = lambda step, timestep, latents: progress.step(step + 1, asked.steps)
    output = ready.pipe(
        num_inference_steps=asked.steps, generator=torch.Generator("cpu").manual_seed(seed), **arguments
    )
    if any(getattr(output, "nsfw_content_detected", None) or ()):
        console.say(f"The model's safety checker has blackened the picture with seed {seed}.")
    if ready.pace is None:
        return [output.images[0]]
    return list(output.images if hasattr(output, "images") else output.frames[0])


def written(
    path: Path, ready: Ready, made: list[PIL.Image.Image], settings: Settings, with_metadata: bool
) -> Settings:
    """Write what was made, with its settings if they are wanted; gives them with what is known of it now."""
    if ready.pace is None:
        metadata.write_png(path, made[0], settings if with_metadata else None)
        return settings
    inputs = {**settings.inputs, "frames": len(made), "fps": ready.pace}
    settings = replace(settings, inputs=inputs)
    metadata.write_clip(path, made, ready.pace, settings if with_metadata else None)
    return settings


def frames_of(path: Path) -> list[PIL.Image.Image]:
    """The picture in a file, or the frames of the video."""
    import PIL.Image

    if files.is_clip(str(path)):
        from calotype.utils import load_video

        return list(load_video(path))
    with PIL.Image.open(path) as image:
        return [image.convert("RGB")]


def compare(
    original: tuple[Settings, list[PIL.Image.Image]], again: tuple[list[PIL.Image.Image], Settings]
) -> bool:
    """Whether the picture or video came out the same; if not, say by how much and what has changed since."""
    import numpy as np

    before, after = (
        np.stack([np.asarray(image.convert("RGB"), dtype=np.int16) for image in images])
        for images in (original[1], again[0])
    )
    what = "picture" if len(before) == 1 else "video"
    if before.shape == after.shape and np.array_equal(before, after):
        console.say(f"The same {what}, pixel for pixel.")
        return True
    changes = [
        f"{name} was {old}, now {new}"
        for name, old, new in (
            ("the model's commit", original[0].revision, again[1].revision),
            ("the model's fingerprint", original[0].fingerprint, again[1].fingerprint),
            ("the device", original[0].device, again[1].device),
            *((name, original[0].versions.get(name), version) for name, version in again[1].versions.items()),
        )
        if old != new
    ]
    reason = "; ".join(changes) or "the file was edited, or the processor computes differently"
    if before.shape != after.shape:
        console.say(f"Not the same {what}: the size differs ({reason}).")
    else:
        levels = np.abs(before - after)
        console.say(
            f"Not the same pixels: {(levels.max(-1) > 0).mean():.1%} of them differ, by at most {levels.max()} of 255 "
            f"({reason})."
        )
    return False
