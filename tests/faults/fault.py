"""One thing that is wrong, as a value: what is done to a checkpoint, what is then tried, and what must be said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.core.errors import ModelFilesError

Damage = Callable[[Path], Any]
"""What is done to a copy of the checkpoint."""

Act = Callable[[Any, Path], Any]
"""What is tried with a library (calotype or the reference) and the checkpoint."""


def load(library: Any, folder: Path, **arguments: Any) -> Any:
    return library.DiffusionPipeline.from_pretrained(folder, **arguments)


def load_unet(library: Any, folder: Path, **arguments: Any) -> Any:
    return library.UNet2DConditionModel.from_pretrained(folder / "unet", **arguments)


def untouched(folder: Path) -> None:
    """No damage."""


@dataclass(frozen=True)
class Fault:
    """``words`` is a regular expression for the message of ``error``; ``ours`` says that the reference is not asked."""

    name: str
    words: str
    damage: Damage = untouched
    act: Act = load
    error: type[Exception] = ModelFilesError
    ours: bool = False


def edit(file: str, **entries: Any) -> Damage:
    """Replace entries of a JSON file; ``None`` takes one away."""

    def damage(folder: Path) -> None:
        path = folder / file
        content = {**json.loads(path.read_text()), **entries}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return damage


def write(file: str, content: bytes | str) -> Damage:
    """Replace a file."""

    def damage(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / file).write_bytes(data)

    return damage


def change(file: str, function: Callable[[bytes], bytes]) -> Damage:
    """Replace a file by what ``function`` makes of it."""

    def damage(folder: Path) -> None:
        (folder / file).write_bytes(function((folder / file).read_bytes()))

    return damage


def remove(name: str) -> Damage:
    """Take a file or folder away."""

    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def both(*damages: Damage) -> Damage:
    """One after another."""

    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time, to see that nothing was left behind or changed."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
