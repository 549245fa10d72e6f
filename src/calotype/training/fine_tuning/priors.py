"""Pictures of a class beside those of one thing, so that the class is not forgotten (https://arxiv.org/abs/2208.12242)."""

from __future__ import annotations

from pathlib import Path

from calotype.core.errors import InputError
from calotype.core.files import replacing
from calotype.training.data.folder import Example, File, find_pictures
from calotype.training.fine_tuning.base import Base
from calotype.training.fine_tuning.run import Say, sample
from calotype.training.fine_tuning.settings import DreamBoothSettings
from calotype.training.loop import TrainingError
from calotype.training.processes import current

_MOST_BLANKED = 3
"""So many times the pictures that are wanted may be made, if a safety checker blanks some."""


def present(settings: DreamBoothSettings) -> list[File]:
    """The class pictures that there are, at most as many as are wanted."""
    folder = Path(settings.class_data_dir or "")
    if folder.is_file():
        raise InputError(f"class_data_dir {str(folder)!r} is a file, not a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    return find_pictures(folder)[: settings.num_class_images]


def class_examples(settings: DreamBoothSettings, base: Base, say: Say) -> list[Example]:
    """The class pictures with their prompt; those that are lacking are made and written into the folder."""
    have = present(settings)
    lacking = settings.num_class_images - len(have)
    current().wait()
    if lacking and current().main:
        say(f"making {lacking:,} class pictures of {settings.class_prompt!r}")
        _make(settings, base, lacking)
    current().wait()
    return [Example(path, (settings.class_prompt or "",)) for path in present(settings)]


def _make(settings: DreamBoothSettings, base: Base, lacking: int) -> None:
    folder, prompt = Path(settings.class_data_dir or ""), settings.class_prompt or ""
    free = (
        number for number in range(10**6) if not (folder / f"class-{settings.seed}-{number:06d}.png").exists()
    )
    made = tried = 0
    while made < lacking:
        if tried >= _MOST_BLANKED * lacking + settings.sample_batch_size:
            raise TrainingError(
                f"The checkpoint's safety checker blanked {tried - made} of {tried} class pictures; choose another "
                f"class_prompt, or put pictures into {folder}."
            )
        numbers = [next(free) for _ in range(min(settings.sample_batch_size, lacking - made))]
        seeds = [settings.seed * 1_000_003 + number for number in numbers]
        pictures, blanked = sample(settings, base, [prompt] * len(numbers), seeds, "pil")
        tried += len(numbers)
        for number, picture, blank in zip(numbers, pictures, blanked, strict=True):
            if not blank:
                with replacing(folder / f"class-{settings.seed}-{number:06d}.png") as temporary:
                    picture.save(temporary, format="PNG")
                made += 1
