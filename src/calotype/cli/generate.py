"""``calotype generate``: prompts become PNG files that say how they were made."""

from __future__ import annotations

import inspect
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli import console, files, request
from calotype.cli.progress import Reporter, duration, reporter
from calotype.cli.request import Request
from calotype.core.errors import InputError, UnknownClassError
from calotype.core.version import __version__
from calotype.utils import metadata
from calotype.utils.metadata import Settings

if TYPE_CHECKING:
    import PIL.Image


def _option(*names: str, help: str, metavar: str) -> Any:
    """An option whose default stands in its help: ``None`` means that it was not given."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


Prompts = Annotated[
    list[str] | None, typer.Argument(metavar="PROMPT", help="What to show.", show_default=False)
]
Model = Annotated[
    str | None,
    _option("--model", "-m", metavar="NAME", help="A folder, a Hub repository, or pocket (the default)."),
]
Output = Annotated[
    str | None,
    _option("--output", "-o", metavar="FILE|DIR", help="A .png file or a folder; by default, this folder."),
]
Negative = Annotated[str | None, _option("--negative", metavar="TEXT", help="What to steer away from.")]
Steps = Annotated[
    int | None, _option("--steps", metavar="N", help=f"Denoising steps; by default {request.DEFAULT_STEPS}.")
]
Guidance = Annotated[
    float | None,
    _option("--guidance", metavar="X", help="How strongly to follow the prompt; 1 turns it off."),
]
Seed = Annotated[
    int | None,
    _option(
        "--seed", metavar="N", help="Of the noise; random by default. Picture i of --count has seed + i."
    ),
]
Width = Annotated[int | None, _option("--width", metavar="N", help="In pixels; by default the model's.")]
Height = Annotated[int | None, _option("--height", metavar="N", help="In pixels; by default the model's.")]
Count = Annotated[
    int | None, _option("--count", "-n", metavar="N", help="Pictures of each prompt; 1 by default.")
]
Scheduler = Annotated[
    str | None,
    _option(
        "--scheduler", metavar="NAME", help="Such as 'Euler a' or DDIMScheduler; by default the model's."
    ),
]
Device = Annotated[
    str | None,
    _option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; by default the best there is."),
]
Dtype = Annotated[
    str | None,
    _option(
        "--dtype",
        metavar="NAME",
        help="float32, float16 or bfloat16; by default float32 on the CPU, float16 elsewhere.",
    ),
]
Like = Annotated[
    Path | None,
    _option("--like", metavar="FILE.png", help="Make this picture again; other options change it."),
]
Sheet = Annotated[
    str | None,
    _option("--sheet", metavar="FILE.png", help="Also write all pictures on one sheet, with their prompts."),
]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Leave the settings out of the PNG.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of file names.")]


@console.plainly
def generate(
    prompts: Prompts = None,
    model: Model = None,
    output: Output = None,
    negative: Negative = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = None,
    width: Width = None,
    height: Height = None,
    count: Count = None,
    scheduler: Scheduler = None,
    device: Device = None,
    dtype: Dtype = None,
    like: Like = None,
    sheet: Sheet = None,
    no_metadata: NoMetadata = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make pictures from prompts, and print the names of their files.

    Each PNG carries its settings: `calotype show FILE.png` prints them, and
    `calotype generate --like FILE.png` makes the same picture again.
    """
    given = {
        "prompts": tuple(prompts) if prompts else None,
        "model": model,
        "negative": negative,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "width": width,
        "height": height,
        "count": count,
        "scheduler": scheduler,
        "device": device,
        "dtype": dtype,
    }
    options = {name: value for name, value in given.items() if value is not None}
    original = None if like is None else (metadata.read_settings(like), _pixels(like))
    asked = request.from_options(options) if original is None else request.like(original[0], options)
    asked.check()
    jobs = asked.jobs()
    paths = files.plan(output, jobs, overwrite)
    sheet_path = files.check_png(sheet, "--sheet") if sheet is not None else None
    if sheet_path is not None:
        files.check_free(sheet_path, overwrite)

    start = time.monotonic()
    results = _run(asked, paths, quiet_names=as_json, with_metadata=not no_metadata)
    if sheet_path is not None:
        from calotype.utils.images import contact_sheet

        pictures = [image for image, _ in results]
        metadata.write_png(sheet_path, contact_sheet(pictures, [prompt for prompt, _ in jobs]))
        if not as_json:
            typer.echo(str(sheet_path))

    same = None
    if original is not None and not options:
        same = _compare(original, results[0])
    seconds = time.monotonic() - start
    if as_json:
        entries = [
            {"file": str(path), **asdict(made)} for path, (_, made) in zip(paths, results, strict=True)
        ]
        report = {"pictures": entries, "sheet": sheet and str(sheet_path), "seconds": round(seconds, 3)}
        console.print_json(report | ({} if same is None else {"same_pixels": same}))
    console.say(_summary(paths, sheet_path, seconds))


def _summary(paths: list[Path], sheet: Path | None, seconds: float) -> str:
    what = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
    folder = paths[0].parent.resolve()
    text = f"{what} in {folder}, made in {duration(seconds)}."
    return text if sheet is None else f"{text} The contact sheet: {sheet.resolve()}"


def _pixels(path: Path) -> PIL.Image.Image:
    import PIL.Image

    with PIL.Image.open(path) as image:
        return image.convert("RGB")


def _run(
    asked: Request, paths: list[Path], quiet_names: bool, with_metadata: bool
) -> list[tuple[PIL.Image.Image, Settings]]:
    """Load the model, make and write each picture, and print the names of those that were written."""
    pipe, base = _prepare(asked)
    jobs = asked.jobs()
    results: list[tuple[PIL.Image.Image, Settings]] = []
    try:
        with reporter(len(jobs), asked.steps, console.stderr()) as progress:
            for index, ((prompt, seed), path) in enumerate(zip(jobs, paths, strict=True)):
                progress.picture(index + 1)
                image = _picture(pipe, asked, prompt, seed, progress)
                made = Settings(
                    **{**base, "prompt": prompt, "seed": seed, "index": index, "size": image.size}
                )
                metadata.write_png(path, image, made if with_metadata else None)
                results.append((image, made))
    finally:  # after Ctrl-C too, the pictures that exist are named
        if not quiet_names:
            for path in paths[: len(results)]:
                typer.echo(str(path))
    return results


def _prepare(asked: Request) -> tuple[Any, dict[str, Any]]:
    """The pipeline, and the settings that all pictures of the run share."""
    import torch

    import calotype
    from calotype.cli import model as models

    device = models.choose_device(asked.device)
    dtype = models.choose_dtype(asked.dtype)
    named = models.choose_scheduler(asked.scheduler) if isinstance(asked.scheduler, str) else None
    console.say(f"Loading {asked.model} on {device}.")
    at = {"revision": asked.revision} if asked.revision else {}
    with console.bars_on_terminals():
        pipe = calotype.load(asked.model, device=device, torch_dtype=dtype, **at)
    if "prompt" not in inspect.signature(pipe.__call__).parameters:
        raise InputError(
            f"{asked.model} is a {type(pipe).__name__}, which takes no prompt; generate needs a model that does."
        )
    if named is not None:
        pipe.scheduler = named[0].from_config(pipe.scheduler.config, **named[1])
    elif isinstance(asked.scheduler, dict):
        pipe.scheduler = _recorded_scheduler(asked.scheduler)
    pipe.set_progress_bar_config(disable=True)
    identity = models.identify(asked.model)
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    guidance = asked.guidance if asked.guidance is not None else _default(pipe, "guidance_scale")
    versions = {"calotype": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return pipe, {
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
    }


def _recorded_scheduler(recorded: dict[str, Any]) -> Any:
    import calotype

    name = recorded.get("class")
    if name not in calotype.__all__ or not str(name).endswith("Scheduler"):
        raise UnknownClassError(
            f"The picture was made with the scheduler {name}, which this calotype does not have; choose another with "
            f"--scheduler."
        )
    return getattr(calotype, name).from_config(recorded.get("config") or {})


def _default(pipe: Any, argument: str) -> Any:
    """The default of an argument of the pipeline's call, or None if it has no such argument."""
    parameter = inspect.signature(pipe.__call__).parameters.get(argument)
    return None if parameter is None else parameter.default


def _picture(pipe: Any, asked: Request, prompt: str, seed: int, progress: Reporter) -> PIL.Image.Image:
    """One picture, alone in its batch and with a generator of its own, so that it can be made again alone."""
    import torch

    def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress.step(step + 1, pipe.num_timesteps)
        return {}

    arguments = {
        "negative_prompt": asked.negative,
        "guidance_scale": asked.guidance,
        "width": asked.width,
        "height": asked.height,
    }
    image: PIL.Image.Image = pipe(
        prompt,
        num_inference_steps=asked.steps,
        generator=torch.Generator("cpu").manual_seed(seed),
        callback_on_step_end=step_done,
        callback_on_step_end_tensor_inputs=[],
        **{name: value for name, value in arguments.items() if value is not None},
    ).images[0]
    return image


def _compare(original: tuple[Settings, PIL.Image.Image], again: tuple[PIL.Image.Image, Settings]) -> bool:
    """Whether the picture came out the same; if not, say by how much and what has changed since."""
    import numpy as np

    before, after = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (original[1], again[0]))
    if before.shape == after.shape and np.array_equal(before, after):
        console.say("The same picture, pixel for pixel.")
        return True
    changes = [
        f"{name} was {old}, now {new}"
        for name, old, new in (
            ("the model's commit", original[0].revision, again[1].revision),
            ("the model's fingerprint", original[0].fingerprint, again[1].fingerprint),
            *((name, original[0].versions.get(name), version) for name, version in again[1].versions.items()),
        )
        if old != new
    ]
    reason = "; ".join(changes) or "the file was edited, or the processor computes differently"
    if before.shape != after.shape:
        console.say(f"Not the same picture: the size differs ({reason}).")
    else:
        levels = np.abs(before - after)
        console.say(
            f"Not the same pixels: {(levels.max(-1) > 0).mean():.1%} of them differ, by at most {levels.max()} of 255 "
            f"({reason})."
        )
    return False
