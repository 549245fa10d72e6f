"""Where pictures and videos go: names made from prompts, and none written over another by accident."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from calotype.core.errors import InputError
from calotype.core.files import CONTAINERS

NAME_LENGTH = 60
CLIPS = (*CONTAINERS, ".gif")
"""The endings of videos."""


def slug(text: str) -> str:
    """A file name from a prompt: its words in lower case joined by hyphens, at most ``NAME_LENGTH`` letters."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = ""
    for word in re.findall(r"[a-z0-9]+", plain):
        longer = f"{name}-{word}" if name else word
        if len(longer) > NAME_LENGTH:
            break
        name = longer
    return name or "picture"


def is_folder(output: str) -> bool:
    """Whether ``--output`` names a folder: it ends in a slash, exists as one, or has no suffix."""
    return output.endswith(("/", "\\")) or Path(output).is_dir() or not Path(output).suffix


def check_png(output: str, option: str) -> Path:
    """The file that an option names; ``InputError`` unless it is a PNG's name."""
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise InputError(
            f"{option} {output!r}: pictures are written as PNG, so the name ends in .png, or in a slash for a folder."
        )
    return path


def is_clip(output: str | None) -> bool:
    """Whether ``--output`` names a video."""
    return output is not None and not is_folder(output) and Path(output).suffix.lower() in CLIPS


def check_clip(output: str) -> Path:
    """The video that ``--output`` names; ``InputError`` unless its ending is a video's."""
    if not is_clip(output):
        raise InputError(
            f"--output {output!r}: the model makes videos, so the name ends in {', '.join(CLIPS[:-1])} or {CLIPS[-1]}, "
            f"or in a slash for a folder."
        )
    return Path(output)


def plan(
    output: str | None, jobs: list[tuple[str, int]], overwrite: bool, videos: bool = False
) -> list[Path]:
    """A path for each picture, or each of the ``videos``, of ``jobs`` (prompt, seed).

    Without ``output``, or in a folder, names are made from prompt and seed, and -2, -3, … keep them apart from what
    exists. One file that is named and exists is an ``InputError`` unless ``overwrite`` is set.
    """
    if output is None or is_folder(output):
        folder = Path(output or ".")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output {output!r} is a file, not a folder.")
        ending = CLIPS[0] if videos else ".png"
        wanted = [folder / f"{slug(prompt)}-{seed}{ending}" for prompt, seed in jobs]
        return _apart(wanted, keep_existing=not overwrite)
    path = check_clip(output) if videos else check_png(output, "--output")
    many = len(jobs) > 1
    paths = [path.with_stem(f"{path.stem}-{n}") if many else path for n in range(1, len(jobs) + 1)]
    for file in paths:
        check_free(file, overwrite)
    return paths


def check_free(file: Path, overwrite: bool) -> None:
    """Refuse a named file that exists, unless it is to be overwritten."""
    if file.exists() and not overwrite:
        raise InputError(
            f"{str(file)!r} exists already: choose another name, or pass --overwrite to replace it."
        )


def _apart(wanted: list[Path], keep_existing: bool) -> list[Path]:
    """The paths with numbers added where two are equal, or where one exists already."""
    taken: set[Path] = set()
    result = []
    for path in wanted:
        free, number = path, 1
        while free in taken or (keep_existing and free.exists()):
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")
        taken.add(free)
        result.append(free)
    return result
