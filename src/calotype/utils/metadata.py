"""How a picture or video was made, written into the file itself and read back.

In a PNG two text chunks carry it. ``calotype`` holds everything as versioned JSON: with it the picture can be made
again. ``parameters`` holds the most important settings in the plain form that the AUTOMATIC1111 web UI introduced and
that galleries and other programs read. In an MP4 or the like they are its comment and its description; a GIF has the
first alone, as its comment.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.core.errors import InputError
from calotype.core.files import CONTAINERS, replacing
from calotype.core.version import __version__
from calotype.schedulers.names import spoken

if TYPE_CHECKING:
    import PIL.Image

SCHEMA = 4
"""The version of the JSON; a reader refuses a newer one instead of misreading it."""

_SINCE = {"lora": 3, "embedding": 3, "frames": 4, "fps": 4, "ip_adapter": 4, "ip_image": 4}
"""What went in -> the version that knows of it; of anything else 2 does."""

CHUNK = "calotype"
PLAIN_CHUNK = "parameters"


class MetadataError(InputError):
    """A picture without settings, or with settings that cannot be read."""


@dataclass(frozen=True)
class Settings:
    """Everything that determines one picture.

    ``seed`` is that picture's own; ``index`` counts the pictures of one run. ``revision`` is the commit of a Hub
    repository, ``fingerprint`` the hash of a folder's files. ``size`` is (width, height) in pixels.
    """

    prompt: str
    model: str
    seed: int
    steps: int
    guidance: float | None
    scheduler: Mapping[str, Any]
    size: tuple[int, int]
    negative_prompt: str | None = None
    index: int = 0
    pipeline: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Pictures and adapters that went in, ``{"file": …, "sha256": …}`` by option, and what else belongs to the call."""

    def to_json(self) -> str:
        """One line of ASCII JSON, the schema's version first."""
        entries = asdict(self)
        if not self.inputs:  # then every reader since the first understands it
            entries.pop("inputs")
        schema = max((_SINCE.get(name, 2) for name in self.inputs), default=1)
        return json.dumps(_spelt({"schema": schema, **entries}), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The settings from their JSON; ``MetadataError`` says what is wrong with it otherwise."""
        try:
            entries = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise MetadataError(f"The settings in the picture are not valid JSON: {error}.") from error
        if not isinstance(entries, dict) or not isinstance(entries.get("schema"), int):
            raise MetadataError(
                "The settings in the picture do not say which version they have, so they are not read."
            )
        if entries["schema"] > SCHEMA:
            raise MetadataError(
                f"The settings in the picture have version {entries['schema']}, and this calotype ({__version__}) "
                f"reads up to {SCHEMA}: update calotype."
            )
        names = {entry.name for entry in fields(cls)}
        known = {name: value for name, value in entries.items() if name in names}
        missing = sorted(_REQUIRED - known.keys())
        if missing:
            raise MetadataError(f"The settings in the picture lack {', '.join(missing)}.")
        known["scheduler"] = _unspelt(known["scheduler"])
        known["size"] = tuple(known["size"]) if isinstance(known["size"], list) else known["size"]
        for name, accepted in _TYPES.items():
            if name in known and not isinstance(known[name], accepted):
                raise MetadataError(
                    f"The settings in the picture have {name} = {known[name]!r}, which is no value of it."
                )
        if len(known["size"]) != 2 or not all(isinstance(side, int) and side > 0 for side in known["size"]):
            raise MetadataError(
                f"The settings in the picture have size = {known['size']!r}, which is no size."
            )
        return cls(**known)


_REQUIRED = {"prompt", "model", "seed", "steps", "guidance", "scheduler", "size"}


def _spelt(value: Any) -> Any:
    """The value with infinite numbers as words: schedulers have them in their options, JSON has none."""
    if isinstance(value, Mapping):
        return {key: _spelt(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _unspelt(value: Any) -> Any:
    """The inverse of :func:`_spelt`."""
    if isinstance(value, dict):
        return {key: _unspelt(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unspelt(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


_TYPES: dict[str, Any] = {
    "prompt": str,
    "model": str,
    "seed": int,
    "steps": int,
    "guidance": int | float | None,
    "scheduler": dict,
    "size": tuple,
    "negative_prompt": str | None,
    "index": int,
    "pipeline": str | None,
    "revision": str | None,
    "fingerprint": str | None,
    "dtype": str,
    "device": str,
    "versions": dict,
    "inputs": dict,
}


def sampler_name(scheduler: Mapping[str, Any]) -> str:
    """What other programs call a scheduler, from its ``{"class": ..., "config": {...}}``."""
    return spoken(str(scheduler.get("class", "unknown")), scheduler.get("config") or {})


def to_parameters(settings: Settings) -> str:
    """The plain text of the ``parameters`` chunk: prompt, negative prompt, and a line of ``Name: value`` pairs."""
    pairs = {
        "Steps": settings.steps,
        "Sampler": sampler_name(settings.scheduler),
        "CFG scale": None if settings.guidance is None else f"{settings.guidance:g}",
        "Seed": settings.seed,
        "Size": f"{settings.size[0]}x{settings.size[1]}",
        "Model hash": settings.fingerprint[:10] if settings.fingerprint else None,
        "Model": re.split(r"[\\/]", settings.model.rstrip("\\/"))[-1],
        "Version": f"calotype {__version__}",
    }
    last = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items() if value is not None)
    negative = f"\nNegative prompt: {settings.negative_prompt}" if settings.negative_prompt else ""
    return f"{settings.prompt}{negative}\n{last}"


def _quoted(value: str) -> str:
    """A value as it stands, or as a JSON string if it holds what separates pairs."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def from_parameters(text: str) -> dict[str, str]:
    """The pairs of a ``parameters`` text, with ``Prompt`` and ``Negative prompt`` first.

    The last line counts as settings if it holds three pairs or more, as the programs that write it take care of.
    """
    lines = text.strip().split("\n")
    pairs = _PAIR.findall(lines[-1])
    if len(pairs) >= 3:
        lines = lines[:-1]
    else:
        pairs = []
    prompt, *negative = re.split(r"^Negative prompt:", "\n".join(lines), maxsplit=1, flags=re.MULTILINE)
    read = {"Prompt": prompt.strip()} | ({"Negative prompt": negative[0].strip()} if negative else {})
    for name, value in pairs:
        read[name.strip()] = _unquoted(value.strip())
    return read


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except json.JSONDecodeError:
        return value


def write_png(path: str | os.PathLike[str], image: PIL.Image.Image, settings: Settings | None = None) -> None:
    """Write a PNG, atomically; with ``settings`` both of its text chunks."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if settings is not None:
        # what PNG and UTF-8 cannot hold stands in the JSON all the same, escaped
        plain = to_parameters(settings).replace("\0", "").encode("utf-8", "replace").decode("utf-8")
        chunks.add_text(PLAIN_CHUNK, plain)
        chunks.add_text(CHUNK, settings.to_json())
    with replacing(Path(path)) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)


def write_clip(
    path: str | os.PathLike[str],
    frames: Sequence[PIL.Image.Image],
    fps: float,
    settings: Settings | None = None,
) -> None:
    """Write a video, as a GIF or in another container that the path's ending names, atomically; with its settings."""
    from calotype.utils import videos

    if Path(path).suffix.lower() == ".gif":
        videos.write_gif(frames, path, fps, "" if settings is None else settings.to_json())
        return
    words = {} if settings is None else {_JSON: settings.to_json(), _TEXT: to_parameters(settings)}
    # in their own size: H.264 needs even sides and no more
    videos.write_video(frames, path, fps, quality=8.0, macro_block_size=2, words=words)


_JSON, _TEXT = "comment", "description"
"""The tags of a video that stand for a PNG's chunks."""


def read_chunks(path: str | os.PathLike[str]) -> dict[str, str]:
    """The settings' texts in a PNG, GIF or video, by the names of a PNG's chunks.

    Raises ``InputError`` if there is no such file or it cannot be read, of videos other than GIF also without PyAV.
    """
    import PIL.Image

    from calotype.utils import videos

    file = Path(path)
    if not file.is_file():
        raise InputError(f"There is no file {os.fspath(path)!r}.")
    if file.suffix.lower() in CONTAINERS:
        words = videos.words_of(file)
        found = {CHUNK: words.get(_JSON, ""), PLAIN_CHUNK: words.get(_TEXT, "")}
        return {name: text for name, text in found.items() if text and _ours(name, text)}
    try:
        with PIL.Image.open(file, formats=("PNG", "GIF")) as image:
            if image.format == "GIF":
                comment = image.info.get("comment", b"").decode("utf-8", "replace")
                return {CHUNK: comment} if _ours(CHUNK, comment) else {}
            image.load()  # text may also follow the pixels
            return {str(name): str(text) for name, text in image.info.items() if isinstance(text, str)}
    except PIL.UnidentifiedImageError:
        raise InputError(
            f"{os.fspath(path)!r} is not a PNG file, nor a GIF or video; only these carry settings."
        ) from None
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"The PNG {os.fspath(path)!r} cannot be read: {error}.") from error


def _ours(name: str, text: str) -> bool:
    """Whether a tag that anybody may write is one of the settings."""
    return text.startswith('{"schema"') if name == CHUNK else len(from_parameters(text)) > 3


def read_settings(path: str | os.PathLike[str]) -> Settings:
    """The settings that calotype wrote into a PNG, GIF or video; ``MetadataError`` if there are none."""
    chunks = read_chunks(path)
    if CHUNK in chunks:
        return Settings.from_json(chunks[CHUNK])
    other = (
        "another program wrote its settings: `calotype show` prints them"
        if PLAIN_CHUNK in chunks
        else "it was written without settings, or a program that saved it again has dropped them"
    )
    raise MetadataError(f"{os.fspath(path)!r} does not say how calotype made it: {other}.")
