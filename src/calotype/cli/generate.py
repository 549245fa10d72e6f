"""``calotype generate``: prompts become pictures and videos in files that say how they were made."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli import console, files, making, request
from calotype.cli.progress import duration, reporter
from calotype.cli.request import Request
from calotype.core.errors import InputError
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
    _option(
        "--model", "-m", metavar="NAME", help="A folder or a Hub repository; by default the bundled one."
    ),
]
Output = Annotated[
    str | None,
    _option(
        "--output",
        "-o",
        metavar="FILE|DIR",
        help="A .png file, a video (.mp4, .gif) or a folder; by default, this folder.",
    ),
]
Negative = Annotated[str | None, _option("--negative", metavar="TEXT", help="What to steer away from.")]
Steps = Annotated[
    int | None,
    _option(
        "--steps",
        metavar="N",
        help=f"Denoising steps; by default {request.DEFAULT_STEPS}, or what the model is made for.",
    ),
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
    _option("--scheduler", metavar="NAME", help="One of `calotype schedulers`; by default the model's."),
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
    _option("--like", metavar="FILE", help="Make this picture or video again; other options change it."),
]
Image = Annotated[
    str | None,
    _option("--image", "-i", metavar="FILE", help="A picture to start from, or an address of one."),
]
Mask = Annotated[
    str | None,
    _option(
        "--mask", metavar="FILE", help="White where something new goes; all else stays, pixel for pixel."
    ),
]
Strength = Annotated[
    float | None, _option("--strength", metavar="X", help="How much of --image to forget, from 0 to 1.")
]
Control = Annotated[
    list[str] | None,
    _option("--control", metavar="FILE", help="A picture for a ControlNet to follow; may be repeated."),
]
ControlNet = Annotated[
    list[str] | None,
    _option(
        "--controlnet", metavar="NAME", help="The ControlNet or T2I-Adapter that reads it, one for each."
    ),
]
Lora = Annotated[
    list[str] | None,
    _option("--lora", metavar="FILE[:X]", help="LoRA weights, X times as strong; may be repeated."),
]
Embedding = Annotated[
    list[str] | None,
    _option("--embedding", metavar="FILE", help="A learned word (textual inversion); may be repeated."),
]
Frames = Annotated[int | None, _option("--frames", metavar="N", help="Of a video; by default the model's.")]
Fps = Annotated[float | None, _option("--fps", metavar="X", help="Frames a second of a video.")]
IpAdapter = Annotated[
    list[str] | None,
    _option("--ip-adapter", metavar="FILE[:X]", help="An IP-Adapter, X times as strong; may be repeated."),
]
IpImage = Annotated[
    list[str] | None,
    _option("--ip-image", metavar="FILE", help="The picture that it takes for a prompt, one for each."),
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
    image: Image = None,
    mask: Mask = None,
    strength: Strength = None,
    control: Control = None,
    controlnet: ControlNet = None,
    lora: Lora = None,
    embedding: Embedding = None,
    frames: Frames = None,
    fps: Fps = None,
    ip_adapter: IpAdapter = None,
    ip_image: IpImage = None,
    like: Like = None,
    sheet: Sheet = None,
    no_metadata: NoMetadata = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make pictures or videos from prompts, and print the names of their files.

    Each file carries its settings: `calotype show FILE.png` prints them, and
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
        "image": image,
        "mask": mask,
        "strength": strength,
        "control": tuple(control) if control else None,
        "controlnet": tuple(controlnet) if controlnet else None,
        "lora": tuple(lora) if lora else None,
        "embedding": tuple(embedding) if embedding else None,
        "frames": frames,
        "fps": fps,
        "ip_adapter": tuple(ip_adapter) if ip_adapter else None,
        "ip_image": tuple(ip_image) if ip_image else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    clip = files.is_clip(output) or frames is not None or fps is not None
    original = None if like is None else (metadata.read_settings(like), making.frames_of(like))
    asked = request.from_options(options, clip) if original is None else request.like(original[0], options)
    asked.check()
    videos = _checked_kind(asked, output, sheet)
    if original is not None and device is None:
        asked = _here(asked)
    jobs = asked.jobs()
    names = [(prompt or Path(asked.image or "").stem, seed) for prompt, seed in jobs]
    paths = files.plan(output, names, overwrite, videos)
    if videos and paths[0].suffix.lower() != ".gif":
        from calotype.utils.videos import pyav

        pyav("Writing a video other than GIF")
    sheet_path = files.check_png(sheet, "--sheet") if sheet is not None else None
    if sheet_path is not None:
        files.check_free(sheet_path, overwrite)

    start = time.monotonic()
    results = _run(asked, paths, quiet_names=as_json, with_metadata=not no_metadata)
    if sheet_path is not None:
        from calotype.utils.images import contact_sheet

        pictures = [images[0] for images, _ in results]
        metadata.write_png(sheet_path, contact_sheet(pictures, [prompt for prompt, _ in jobs]))
        if not as_json:
            typer.echo(str(sheet_path))

    same = None
    if original is not None and not options:
        again = making.frames_of(paths[0]) if videos else results[0][0]  # as they are after compression
        same = making.compare(original, (again, results[0][1]))
    seconds = time.monotonic() - start
    if as_json:
        entries = [
            {"file": str(path), **asdict(made)} for path, (_, made) in zip(paths, results, strict=True)
        ]
        report = {
            "videos" if videos else "pictures": entries,
            "sheet": sheet and str(sheet_path),
            "seconds": round(seconds, 3),
        }
        console.print_json(report | ({} if same is None else {"same_pixels": same}))
    console.say(_summary(paths, sheet_path, seconds, "video" if videos else "picture"))


def _checked_kind(asked: Request, output: str | None, sheet: str | None) -> bool:
    """Whether the model makes videos; ``InputError`` where the options ask it for what it does not make."""
    from calotype.cli.model import makes_videos

    if makes_videos(asked.model, asked.revision):
        if sheet is not None:
            raise InputError(f"--sheet is for pictures, and {asked.model} makes videos; leave it out.")
        return True
    if not asked.prompts:
        raise InputError(request.NOTHING)
    given = [f"--{name}" for name in ("frames", "fps") if getattr(asked, name) is not None]
    given += [f"--output {output!r}"] if files.is_clip(output) else []
    if given:
        raise InputError(
            f"{asked.model} makes pictures, so {given[0]} has no meaning; choose a model of videos with --model, or "
            f"leave it out."
        )
    return False


def _summary(paths: list[Path], sheet: Path | None, seconds: float, kind: str) -> str:
    what = f"1 {kind}" if len(paths) == 1 else f"{len(paths)} {kind}s"
    folder = paths[0].parent.resolve()
    text = f"{what} in {folder}, made in {duration(seconds)}."
    return text if sheet is None else f"{text} The contact sheet: {sheet.resolve()}"


def _here(asked: Request) -> Request:
    """The request of a recorded picture, on the best device of this machine if it lacks the recorded one."""
    from calotype.cli.model import choose_device

    try:
        choose_device(asked.device)
    except InputError:
        console.say(f"The picture was made on {asked.device}, which this machine does not have.")
        return replace(asked, device=None)
    return asked


def _run(
    asked: Request, paths: list[Path], quiet_names: bool, with_metadata: bool
) -> list[tuple[list[PIL.Image.Image], Settings]]:
    """Load the model, make and write each picture, and print the names of those that were written."""
    ready = making.prepare(asked)
    jobs = asked.jobs()
    results: list[tuple[list[PIL.Image.Image], Settings]] = []
    try:
        with reporter(len(jobs), asked.steps, console.stderr()) as progress:
            for index, ((prompt, seed), path) in enumerate(zip(jobs, paths, strict=True)):
                progress.picture(index + 1)
                images = making.picture(ready, asked, prompt, seed, progress)
                size = images[0].size
                made = Settings(
                    **{**ready.shared, "prompt": prompt, "seed": seed, "index": index, "size": size}
                )
                results.append((images, making.written(path, ready, images, made, with_metadata)))
    finally:  # after Ctrl-C too, the pictures that exist are named
        if not quiet_names:
            for path in paths[: len(results)]:
                typer.echo(str(path))
    return results
