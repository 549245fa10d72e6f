"""One run of fine-tuning, whatever is learned: data to batches, the loop, sample sheets, the result and its card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.training.checkpoint import Position
from calotype.training.data.batches import Batches, Drawing, Extra, PictureSet
from calotype.training.data.encoded import PictureEncoder, Texts, encode_texts
from calotype.training.data.folder import Example, check_readable, files_of, fingerprint, open_picture
from calotype.training.data.sizes import Size, buckets, closest
from calotype.training.fine_tuning.base import Base
from calotype.training.fine_tuning.card import Subject, write_card
from calotype.training.fine_tuning.settings import LearningSettings, Settings
from calotype.training.gradients import Batch, precision
from calotype.training.loop import Inspection, LoopSettings, Watch, fit
from calotype.training.pace import Pace
from calotype.training.processes import current, join
from calotype.training.sharding import bring_together, shard
from calotype.training.sheets import write_sheet
from calotype.training.text_to_image import TextToImageObjective

Say = Callable[[str], None]

Load = Callable[[str, torch.device], Base]
"""A checkpoint's name and a device -> what is taught."""

INSIDE = "training"
"""The folder in the output that has the checkpoint and the log."""


@dataclass(frozen=True)
class Lesson:
    """What is trained, what it reads in captions, and how the result is written into a folder."""

    kind: str
    objective: nn.Module
    read: Texts
    read_identity: str | None
    """what reads captions, where what it makes of them may be kept on disk"""
    write: Callable[[Path], Sequence[str]]
    """writes the result and returns the names of its files and folders, that which marks it as whole last"""
    usage: str
    """lines of Python that use the result"""
    facts: Mapping[str, Any]
    """further lines of the card"""
    extras: Sequence[Extra] = ()
    """what a batch has beside pictures and captions"""
    pipe: Any = None
    """what draws the samples, if it is not the base's own pipeline"""
    told: Sequence[Mapping[str, Any]] = ()
    """what it is told beside each validation prompt"""
    after_step: Callable[[], None] | None = None
    """called when the weights have changed"""


def dtype_of(settings: LearningSettings) -> torch.dtype | None:
    """The type to compute in, if it is a smaller one."""
    return {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[settings.mixed_precision]


def check_output(settings: LearningSettings) -> None:
    """``InputError`` for an output folder that has something in it, unless the run goes on from there."""
    folder = settings.output
    if folder.is_file():
        raise InputError(f"output_dir {str(folder)!r} is a file, not a folder.")
    checkpoint = folder / INSIDE / "training.pt"
    if settings.resume:
        if not checkpoint.is_file():
            raise InputError(f"There is nothing to resume: no {checkpoint}.")
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"output_dir {str(folder)!r} is not empty: name a new folder, or pass resume to go on from its checkpoint."
        )


def begin(settings: Settings, examples: Sequence[Example], load: Load | None = None) -> Base:
    """Check the output, the pictures and the model, and read the latter. Nothing is written."""
    from calotype.training.recipes.base import pick_device

    check_output(settings)
    device = join(pick_device(settings.device))
    check_readable(files_of(examples))
    base = (load or Base.load)(settings.pretrained_model_name_or_path, device)
    sizes_for(settings, base)
    if settings.fsdp:
        base.pipe.acceleration = None  # graphs of calls know nothing of what comes from other processes
    current().wait()  # before one of them writes what the others would find
    torch.manual_seed(settings.seed)
    return base


def sizes_for(settings: Settings, base: Base) -> list[Size]:
    """The sizes that pictures may be cut to. ``InputError`` for a resolution that the model cannot have."""
    resolution = settings.resolution or base.resolution
    among = buckets(resolution, base.size_step)
    return among if settings.aspect_ratio_buckets else [(resolution, resolution)]


def picture_set(settings: Settings, base: Base, examples: Sequence[Example]) -> PictureSet:
    """Pictures with the size that each is cut to."""
    among = sizes_for(settings, base)
    sizes = []
    for example in examples:
        picture = open_picture(example.path)
        sizes.append(closest((picture.height, picture.width), among))
    return PictureSet(tuple(examples), tuple(sizes), settings.train_batch_size, settings.seed)


def objective_for(
    settings: Settings, base: Base, *, reads: bool, denoiser: nn.Module | None = None
) -> TextToImageObjective:
    """The denoising loss of the UNet, or of ``denoiser``.

    With ``reads`` the text encoder is a part of what is computed in each step.
    """
    unet, encoder = base.pipe.unet, base.pipe.text_encoder
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        if reads:
            # its name in transformers 5, and the one before
            enable = getattr(encoder, "activation_checkpointing_enable", None)
            (enable or encoder.gradient_checkpointing_enable)({"use_reentrant": False})
    return TextToImageObjective(
        unet if denoiser is None else denoiser,
        encoder if reads else None,
        base.training_scheduler.alphas_cumprod.to(base.device),
        base.prediction,
        settings.snr_gamma,
    )


def teach(
    settings: Settings,
    base: Base,
    lesson: Lesson,
    sets: Sequence[tuple[PictureSet, float]],
    say: Say = print,
) -> Path:
    """Train as the settings say and write the result; returns the output folder."""
    say = current().voice(say)
    examples = [example for pictures, _ in sets for example in pictures.examples]
    learn(
        settings,
        lesson.objective,
        _batches(settings, base, lesson, sets, examples, say),
        lesson.write,
        identity={"kind": lesson.kind, "data": fingerprint(examples)},
        inspect=_sheets(settings, base, lesson, say) if settings.validation_prompts else None,
        after_step=lesson.after_step,
        say=say,
    )
    subject = Subject(
        lesson.kind,
        base.name,
        "text-to-image",
        ("stable-diffusion-xl" if base.xl else "stable-diffusion", "text-to-image"),
    )
    facts = {"prediction": base.prediction, **lesson.facts}
    finish(settings, subject, len(examples), lesson.usage, facts, say)
    return settings.output


def finish(
    settings: LearningSettings,
    subject: Subject,
    pictures: int,
    usage: str,
    facts: Mapping[str, Any],
    say: Say,
) -> None:
    """Write the card, and return when it is there in all processes."""
    if current().main:
        write_card(settings, subject, pictures, usage, facts, settings.output / INSIDE / "log.jsonl")
        say(f"written to {settings.output}")
    current().wait()


class NumberedBatches(Protocol):
    """Batches by their number, each of ``samples`` pictures."""

    @property
    def samples(self) -> int: ...

    def __call__(self, number: int) -> Batch: ...


def learn(
    settings: LearningSettings,
    objective: nn.Module,
    batches: NumberedBatches,
    write: Callable[[Path], Sequence[str]],
    *,
    identity: Mapping[str, object],
    inspect: Inspection | None,
    after_step: Callable[[], None] | None = None,
    say: Say,
) -> None:
    """Take the settings' steps and put what ``write`` makes of the result into the output folder.

    A run is resumed only if its ``identity`` and the settings are those of the checkpoint.
    """
    folder = settings.output / INSIDE
    constant = settings.lr_scheduler == "constant"
    loop = LoopSettings(
        pace=Pace(
            settings.learning_rate,
            steps=settings.max_train_steps,
            warmup=settings.lr_warmup_steps,
            final_fraction=1.0 if constant else 0.0,
        ),
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        clip=settings.max_grad_norm,
        accumulate=settings.gradient_accumulation_steps,
        ema_decay=settings.ema_decay if settings.use_ema else 0.0,
        autocast=dtype_of(settings),
        report_every=settings.report_every,
        checkpoint_every=settings.checkpoint_every,
        checkpoint_steps=settings.checkpointing_steps,
        inspect_every=None,
        inspect_steps=settings.validation_steps or settings.max_train_steps,
    )
    if settings.fsdp:
        current().share(objective)
        shard(objective, next(objective.parameters()).device)
    outcome = fit(
        objective,
        batches,
        loop,
        folder=folder,
        samples_per_batch=batches.samples,
        identity={**settings.identity, **identity},
        resume=settings.resume,
        inspect=inspect,
        watch=_board(folder),
        after_step=after_step,
        say=say,
    )
    objective.eval()
    with outcome.ema.applied():
        if settings.fsdp:
            bring_together(objective)
        if current().main:
            _put(write, settings.output)


def _batches(
    settings: Settings,
    base: Base,
    lesson: Lesson,
    sets: Sequence[tuple[PictureSet, float]],
    examples: Sequence[Example],
    say: Say,
) -> Batches:
    kept = Path(settings.cache_dir) if settings.cache_dir is not None else None
    captions = sorted({caption for example in examples for caption in example.captions})
    say(f"{len(examples):,} pictures, {len(captions):,} captions, on {base.device}")
    texts = encode_texts(
        [*captions, ""],
        lesson.read,
        lesson.read_identity or "",
        kept if lesson.read_identity is not None else None,
    )
    cached = settings.cache_latents and settings.center_crop
    encoder = PictureEncoder(base.pipe.vae, base.vae_identity if kept else "", cached, kept)
    if cached:
        flips = (False, True) if settings.random_flip else (False,)
        for pictures, _ in sets:
            for example, size in zip(pictures.examples, pictures.sizes, strict=True):
                for flip in flips:
                    encoder(example, size, flip)
    return Batches(
        sets,
        encoder,
        texts,
        int(base.training_scheduler.config.num_train_timesteps),
        base.device,
        Drawing(
            not settings.center_crop,
            settings.random_flip,
            settings.proportion_empty_prompts,
            settings.noise_offset,
        ),
        settings.seed,
        told_sizes=base.xl,
        extras=lesson.extras,
    )


def _sheets(settings: Settings, base: Base, lesson: Lesson, say: Say) -> Inspection:
    """An inspection that makes a sheet of the validation prompts, always with the same noise."""
    side = settings.resolution or base.resolution

    def inspect(position: Position) -> dict[str, float]:
        pictures, captions = [], []
        told = lesson.told or [{}] * len(settings.validation_prompts)
        for prompt, more in zip(settings.validation_prompts, told, strict=True):
            for number in range(settings.num_validation_images):
                seeds = [settings.seed + number]
                pictures.append(sample(settings, base, [prompt], seeds, "pt", lesson.pipe, **more)[0][0])
                captions.append(prompt)
        path = settings.output / "samples" / f"step-{position.step:06d}.png"
        if not current().main:  # the others computed their parts of it
            return {}
        write_sheet(path, torch.stack(pictures), captions, columns=min(4, len(pictures)))
        say(f"samples at step {position.step:,} of {side} x {side}: {path}")
        return {}

    return inspect


@torch.no_grad()
def sample(
    settings: Settings,
    base: Base,
    prompts: list[str],
    seeds: list[int],
    output_type: str,
    pipe: Any = None,
    **told: Any,
) -> tuple[Any, list[bool]]:
    """Pictures by the checkpoint as it is now, and which of them its safety checker blanked.

    ``pipe`` stands in the place of the checkpoint's pipeline, and ``told`` are further arguments of it.
    """
    side = settings.resolution or base.resolution
    generators = [torch.Generator(base.device).manual_seed(seed) for seed in seeds]
    with precision(base.device, dtype_of(settings)):
        made = (pipe or base.pipe)(
            prompts,
            height=side,
            width=side,
            num_inference_steps=settings.validation_inference_steps,
            guidance_scale=settings.validation_guidance_scale,
            generator=generators,
            output_type=output_type,
            **told,
        )
    flags = getattr(made, "nsfw_content_detected", None)
    return made.images, list(flags) if flags else [False] * len(prompts)


def _board(folder: Path) -> Watch | None:
    """Writes the log for TensorBoard too, where that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: list[Any] = []

    def watch(position: Position, numbers: Mapping[str, float]) -> None:
        if not writer:
            writer.append(SummaryWriter(str(folder)))
        for name, value in numbers.items():
            writer[0].add_scalar(name, value, position.step)
        writer[0].flush()

    return watch


def _put(write: Callable[[Path], Sequence[str]], folder: Path) -> None:
    """Write beside the place and move there when all is written, so that no half result can be seen."""
    with tempfile.TemporaryDirectory(prefix=".result-", dir=folder) as made:
        for name in write(Path(made)):
            target = folder / name
            if target.is_dir():
                shutil.rmtree(target)
            (Path(made) / name).replace(target)
