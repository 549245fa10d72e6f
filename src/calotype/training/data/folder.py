"""A folder of pictures with captions: which pictures there are, what is said of each, and that all can be read.

Captions stand in ``metadata.jsonl`` or ``metadata.csv`` (``file_name`` and a column for the text), or in a
``picture.txt`` beside each ``picture.jpg``; or all is in the tables of Parquet files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.core.errors import InputError
from calotype.training.data.tables import Packed, Row, read_rows

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""The endings of picture files."""
METADATA = ("metadata.jsonl", "metadata.csv")


File = Path | Packed
"""Where a picture is."""


@dataclass(frozen=True)
class Example:
    """A picture and what may be said of it; one of ``captions`` is drawn each time."""

    path: File
    captions: tuple[str, ...]
    beside: File | None = None
    """a picture of the same shape that belongs to it, such as its edges"""


def find_pictures(folder: str | os.PathLike[str]) -> list[File]:
    """The pictures in a folder and its subfolders, in order of their names. ``InputError`` if there are none."""
    files, tables = _contents(Path(folder))
    return [*files] if files else [row.picture for row in read_rows(tables)]


def _contents(root: Path) -> tuple[list[Path], list[Path]]:
    """The picture files of a folder and, where there are none, its tables. ``InputError`` if there is neither."""
    if not root.is_dir():
        raise InputError(f"There is no folder {str(root)!r} with pictures.")
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    found = [path for path in files if path.suffix.lower() in PICTURES]
    tables = [] if found else [path for path in files if path.suffix == ".parquet"]
    if not found and not tables:
        raise InputError(f"There are no pictures in {str(root)!r}: they end in {', '.join(PICTURES)}.")
    return found, tables


def read_captioned(
    folder: str | os.PathLike[str], caption_column: str = "text", beside_column: str | None = None
) -> list[Example]:
    """Pictures with the captions that their folder has for them.

    With ``beside_column`` the metadata name a second picture for each, or the tables have one. Raises ``InputError``
    for no pictures, no captions, a picture without one, and metadata that name no picture.
    """
    root = Path(folder)
    pictures, tables = _contents(root)
    if tables:
        return [_of_row(row) for row in read_rows(tables, caption_column, beside_column)]
    given = [root / name for name in METADATA if (root / name).is_file()]
    if len(given) > 1:
        raise InputError(f"{str(root)!r} has both {' and '.join(METADATA)}; keep one.")
    if given:
        return _by_metadata(root, given[0], caption_column, beside_column)
    if beside_column is not None:
        raise InputError(
            f"There is no {' or '.join(METADATA)} in {str(root)!r}: its column {beside_column!r} says which picture "
            f"belongs to which."
        )
    captions = {path: _beside(path) for path in pictures}
    without = [path for path, caption in captions.items() if not caption]
    if len(without) == len(pictures):
        raise InputError(
            f"There are no captions in {str(root)!r}: write a metadata.jsonl with lines such as "
            f'{{"file_name": {json.dumps(pictures[0].name)}, "{caption_column}": "a red ball on grass"}}, or a text '
            f"file of the same name beside each picture."
        )
    if without:
        raise InputError(
            f"There is no caption for {_listed(without)}: write a text file beside each picture."
        )
    return [Example(path, (caption,)) for path, caption in captions.items()]


def same_for_all(folder: str | os.PathLike[str], captions: Sequence[str]) -> list[Example]:
    """The pictures of a folder, of each of which the same may be said."""
    return [Example(path, tuple(captions)) for path in find_pictures(folder)]


def check_readable(paths: Iterable[File]) -> None:
    """Decode each picture; ``InputError`` names those that are damaged or no pictures."""
    broken = []
    for path in paths:
        try:
            open_picture(path)
        except Exception as error:
            broken.append(f"{path} ({error or type(error).__name__})")
    if broken:
        raise InputError(f"Pictures that cannot be read: {_listed(broken)}. Replace or remove them.")


def files_of(examples: Iterable[Example]) -> list[File]:
    """The picture files of examples."""
    return [path for example in examples for path in (example.path, example.beside) if path is not None]


def open_picture(path: File) -> Any:
    """A picture as RGB, turned as its EXIF says. Raises what Pillow raises for files that it cannot read."""
    from PIL import Image, ImageOps

    with Image.open(path if isinstance(path, Path) else io.BytesIO(path.read_bytes())) as opened:
        opened.load()
        return ImageOps.exif_transpose(opened).convert("RGB")


def fingerprint(examples: Sequence[Example]) -> str:
    """A digest of what is learned from: the files' contents, their order and captions."""
    digest = hashlib.sha256()
    for example in examples:
        for path in files_of([example]):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        digest.update(json.dumps(example.captions).encode())
    return digest.hexdigest()[:16]


def _of_row(row: Row) -> Example:
    texts = tuple(row.text) if isinstance(row.text, list) else (row.text,)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"There is no caption in {row.picture}.")
    return Example(row.picture, texts, row.beside)


def _beside(picture: Path) -> str:
    path = picture.with_suffix(".txt")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _by_metadata(root: Path, path: Path, column: str, beside: str | None) -> list[Example]:
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path} has no lines.")
    found: dict[Path, Example] = {}
    for number, row in enumerate(rows, 1):
        for needed in ("file_name", column, *([beside] if beside else [])):
            if not row.get(needed):
                keys = ", ".join(map(repr, row))
                raise InputError(f"Entry {number} of {path} has no {needed!r}; it has {keys or 'nothing'}.")
        name, said = row["file_name"], row[column]
        texts = tuple(said) if isinstance(said, list) else (said,)
        if not isinstance(name, str) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"Entry {number} of {path}: file_name and {column} are texts.")
        picture = _named(root, name, f"Entry {number} of {path}")
        if picture in found:
            raise InputError(
                f"{path} has two entries for {name!r}; a list of texts gives a picture several captions."
            )
        second = None if beside is None else _named(root, str(row[beside]), f"Entry {number} of {path}")
        found[picture] = Example(picture, texts, second)
    return list(found.values())


def _named(root: Path, name: str, where: str) -> Path:
    """A file of the folder; ``InputError`` for one outside of it and for none."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{where} names {name!r}, which is not in the folder.")
    if not path.is_file():
        raise InputError(f"{where} names {name!r}, and there is no such file.")
    return path


def _rows(path: Path) -> list[Mapping[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"Line {number} of {path} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise InputError(f"Line {number} of {path} is not a JSON object: {line[:60]!r}.")
        rows.append(row)
    return rows


def _listed(things: Sequence[object], most: int = 5) -> str:
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(map(str, things[:most])) + more
