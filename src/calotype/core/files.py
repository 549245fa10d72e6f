"""Writing files so that a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calotype.core.errors import ModelFilesError

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Endings of files that hold videos in H.264, and what FFmpeg calls them."""


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a file of a model's ``folder`` that is a link to somewhere else, which its author may not have meant.

    The folder may itself be a link, a component may link into its pipeline, and the Hub's cache links to its own store.
    """
    target, root = path.resolve(), folder.resolve()
    if target.is_relative_to(root):
        return
    if (root.parent / "model_index.json").is_file() and target.is_relative_to(root.parent):
        return
    if any(part.name == "blobs" and part.parent.name.startswith("models--") for part in target.parents):
        return
    raise ModelFilesError(
        f"{path} is a link out of its folder, to {target}, and is not followed: put the file itself in its place, or "
        f"load from the folder that it is in."
    )


def check_links(part: Path, folder: Path) -> None:
    """:func:`check_inside` for ``part``, a folder in ``folder``, and for the files in it."""
    check_inside(part, folder)
    for path in part.iterdir():
        if path.is_symlink():
            check_inside(path, folder)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; a model folder is as readable as its owner's other files
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
