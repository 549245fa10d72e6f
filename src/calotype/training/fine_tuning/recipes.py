"""The ways of fine-tuning that users call: text to image, LoRA, textual inversion, DreamBooth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calotype.training.data.batches import PictureSet
from calotype.training.data.encoded import Texts
from calotype.training.data.folder import Example, check_readable, read_captioned, same_for_all
from calotype.training.fine_tuning import inversion, low_rank, priors, whole
from calotype.training.fine_tuning.base import Base
from calotype.training.fine_tuning.run import Lesson, Say, begin, dtype_of, objective_for, picture_set, teach
from calotype.training.fine_tuning.settings import (
    DreamBoothSettings,
    LoraSettings,
    LowRankSettings,
    ModelSettings,
    TextToImageSettings,
    TextualInversionSettings,
)


def train_text_to_image(*, say: Say = print, **options: Any) -> Path:
    """Fine-tune all of a checkpoint's UNet on captioned pictures; writes a whole checkpoint.

    ``options`` are the fields of :class:`TextToImageSettings`; ``pretrained_model_name_or_path``, ``train_data_dir``
    and ``output_dir`` are needed. Returns the output folder. Raises ``InputError`` for what cannot be, before
    anything is written.
    """
    settings = TextToImageSettings.of(options)
    examples = read_captioned(settings.train_data_dir, settings.caption_column)
    base = begin(settings, examples)
    lesson = _whole(settings, base, "text-to-image")
    return teach(settings, base, lesson, [(picture_set(settings, base, examples), 1.0)], say)


def train_lora(*, say: Say = print, **options: Any) -> Path:
    """Train low-rank weights for a checkpoint on captioned pictures; writes ``pytorch_lora_weights.safetensors``.

    With ``prior_data_dir`` pictures of what the checkpoint shall not forget are trained beside. ``options`` are the
    fields of :class:`LoraSettings`; the rest is as for :func:`train_text_to_image`.
    """
    settings = LoraSettings.of(options)
    examples = read_captioned(settings.train_data_dir, settings.caption_column)
    prior = (
        []
        if settings.prior_data_dir is None
        else read_captioned(settings.prior_data_dir, settings.caption_column)
    )
    base = begin(settings, [*examples, *prior])
    lesson = _low_rank(settings, base, "lora")
    sets = [(picture_set(settings, base, examples), 1.0)]
    if prior:
        sets = _with_prior(settings, base, examples, prior, settings.prior_loss_weight)
    return teach(settings, base, lesson, sets, say)


def train_textual_inversion(*, say: Say = print, **options: Any) -> Path:
    """Learn the vectors of a new word from pictures of one thing or style; writes ``learned_embeds.safetensors``.

    ``options`` are the fields of :class:`TextualInversionSettings`; ``placeholder_token`` and ``initializer_token``
    are needed too. The rest is as for :func:`train_text_to_image`. (https://arxiv.org/abs/2208.01618)
    """
    settings = TextualInversionSettings.of(options)
    captions = inversion.captions(settings.placeholder_token, settings.learnable_property)
    examples = same_for_all(settings.train_data_dir, captions)
    base = begin(settings, examples)
    word = inversion.put_in(settings, base)
    base.lighten(dtype_of(settings))
    lesson = Lesson(
        kind="textual-inversion",
        objective=inversion.WordObjective(objective_for(settings, base, reads=True), word),
        read=base.ids,
        read_identity=None,
        write=lambda folder: inversion.write(settings.placeholder_token, word, folder),
        usage=f"pipe = calotype.load({base.name!r})\n"
        f"pipe.load_textual_inversion({settings.output.name!r})\n"
        f'pipe("a photo of {settings.placeholder_token}").images[0]',
        facts={"word": f"`{settings.placeholder_token}`", "vectors": settings.num_vectors},
    )
    return teach(settings, base, lesson, [(picture_set(settings, base, examples), 1.0)], say)


def train_dreambooth(*, say: Say = print, **options: Any) -> Path:
    """Teach a checkpoint one thing by a rare word, all of it or by low-rank weights (``lora=True``).

    With ``with_prior_preservation`` pictures of the class, which the checkpoint itself makes where there are too few,
    are trained beside. ``options`` are the fields of :class:`DreamBoothSettings`; ``instance_data_dir`` and
    ``instance_prompt`` are needed. The rest is as for :func:`train_text_to_image`. (https://arxiv.org/abs/2208.12242)
    """
    settings = DreamBoothSettings.of(options)
    examples = same_for_all(settings.instance_data_dir, [settings.instance_prompt])
    if settings.with_prior_preservation:
        check_readable(priors.present(settings))
    base = begin(settings, examples)
    low_rank.check_text_encoder(settings, base)
    if settings.lora:
        low_rank.targets(settings, base)
    sets = [(picture_set(settings, base, examples), 1.0)]
    if settings.with_prior_preservation:
        # before anything is trained, and before low-rank weights are put in
        prior = priors.class_examples(settings, base, say)
        sets = _with_prior(settings, base, examples, prior, settings.prior_loss_weight)
    make = _low_rank if settings.lora else _whole
    return teach(settings, base, make(settings, base, "dreambooth"), sets, say)


def _with_prior(
    settings: ModelSettings, base: Base, examples: Sequence[Example], prior: Sequence[Example], weight: float
) -> list[tuple[PictureSet, float]]:
    """Batches of both; the mean over one, weighed by 2 and 2w, is the mean of the first plus w times the other's."""
    return [
        (picture_set(settings, base, examples), 2.0),
        (picture_set(settings, base, prior), 2.0 * weight),
    ]


def _whole(settings: ModelSettings, base: Base, kind: str) -> Lesson:
    low_rank.check_text_encoder(settings, base)
    whole.open_up(settings, base)
    read, identity = _reading(settings, base)
    return Lesson(
        kind=kind,
        objective=objective_for(settings, base, reads=settings.train_text_encoder),
        read=read,
        read_identity=identity,
        write=lambda folder: whole.write(base, folder),
        usage=f'pipe = calotype.load({settings.output.name!r})\npipe("{_prompt(settings)}").images[0]',
        facts={"text encoder": "trained" if settings.train_text_encoder else "as it was"},
    )


def _low_rank(settings: LowRankSettings, base: Base, kind: str) -> Lesson:
    low_rank.check_text_encoder(settings, base)
    base.lighten(dtype_of(settings))  # first: what is trained stays in float32
    models = low_rank.put_in(settings, base)
    strength = low_rank.strength_of(settings)
    read, identity = _reading(settings, base)
    return Lesson(
        kind=kind,
        objective=objective_for(settings, base, reads=settings.train_text_encoder),
        read=read,
        read_identity=identity,
        write=lambda folder: low_rank.write(models, strength, folder),
        usage=f"pipe = calotype.load({base.name!r})\n"
        f"pipe.load_lora_weights({settings.output.name!r})\n"
        f'pipe("{_prompt(settings)}").images[0]',
        facts={"rank": settings.rank, "alpha": strength * settings.rank, "for": ", ".join(models)},
    )


def _reading(settings: ModelSettings, base: Base) -> tuple[Texts, str | None]:
    """What is read in captions: ids where the text encoder is trained, otherwise its states, which may be kept."""
    return (base.ids, None) if settings.train_text_encoder else (base.states, base.text_identity)


def _prompt(settings: ModelSettings) -> str:
    said: Sequence[str] = settings.validation_prompts or [getattr(settings, "instance_prompt", "…")]
    return said[0].replace('"', "'")
