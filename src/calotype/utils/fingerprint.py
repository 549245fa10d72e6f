"""A short name for the contents of a model's folder, so that a picture can say which weights made it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

WHOLE_BYTES = 64 * 2**20
SAMPLES = 256
SAMPLE_BYTES = 2**14

_COUNTED = {".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".ckpt"}


def fingerprint(*folders: str | os.PathLike[str]) -> str:
    """The SHA-256 (hexadecimal) of the names, sizes and contents of the files in folders that make up a model.

    Files of up to ``WHOLE_BYTES`` are read whole; of larger ones the beginning, the end and ``SAMPLES`` evenly
    spaced pieces, which any training or conversion changes. Documentation and pictures do not count.
    """
    digest = hashlib.sha256()
    for name, path in (pair for folder in folders for pair in _files(Path(folder))):
        if any(part.startswith(".") for part in name.split("/")):
            continue
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE_BYTES:
                digest.update(file.read())
                continue
            for number in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _files(root: Path) -> list[tuple[str, Path]]:
    """The files of a folder that count, with their names in it, in their order."""
    files = (path for path in root.rglob("*") if path.suffix in _COUNTED and path.is_file())
    return sorted((path.relative_to(root).as_posix(), path) for path in files)
