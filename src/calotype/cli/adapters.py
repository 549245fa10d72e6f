"""LoRA weights, IP-Adapters and learned words that go in: found, known by their contents, loaded and recorded."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from calotype.core.errors import InputError

if TYPE_CHECKING:
    from calotype.cli.request import Request

_SCALED = re.compile(r"(?P<name>.*):(?P<scale>[-+]?(?:\d+\.?\d*|\.\d+))")


class Weighted(NamedTuple):
    """A file, folder or repository of adapter weights, and how strongly they act."""

    name: str
    scale: float


def weighted(text: str, option: str) -> Weighted:
    """``FILE`` or ``FILE:scale`` taken apart; ``InputError`` where there is nothing before the scale."""
    match = _SCALED.fullmatch(text)
    found = Weighted(match["name"], float(match["scale"])) if match else Weighted(text, 1.0)
    if not found.name.strip() or not math.isfinite(found.scale):
        raise InputError(
            f"{option} {text!r} names no file; give FILE or FILE:scale, as in style.safetensors:0.7."
        )
    return found


def load(pipe: Any, asked: Request) -> dict[str, Any]:
    """Give the pipeline the adapters that are asked for; returns them as settings of what is made.

    Raises ``InputError`` where the pipeline takes none, or where a file is not what it was when the recorded picture
    was made with it.
    """
    for option, given, method in (
        ("--lora", asked.lora, "load_lora_weights"),
        ("--embedding", asked.embedding, "load_textual_inversion"),
        ("--ip-adapter", asked.ip_adapter, "load_ip_adapter"),
    ):
        if given and not hasattr(pipe, method):
            raise InputError(f"{asked.model} is a {type(pipe).__name__}, which takes no {option}.")
    return _loras(pipe, asked) | _ip_adapters(pipe, asked) | _words(pipe, asked)


def _loras(pipe: Any, asked: Request) -> dict[str, Any]:
    from calotype.adapters.formats import files

    entries, scales = [], {}
    for number, text in enumerate(asked.lora):
        lora = weighted(text, "--lora")
        path = files.find(lora.name, None, None, None, files.hub.HubOptions())
        entries.append(_entry(path, lora, "--lora", asked))
        pipe.load_lora_weights(path, adapter_name=f"lora_{number}")
        scales[f"lora_{number}"] = lora.scale
    if scales:
        pipe.set_adapters([*scales], [*scales.values()])
    return {"lora": entries} if entries else {}


def _ip_adapters(pipe: Any, asked: Request) -> dict[str, Any]:
    from calotype.adapters import ip_adapter_files
    from calotype.core.hub import HubOptions

    if not asked.ip_adapter:
        return {}
    found = [weighted(text, "--ip-adapter") for text in asked.ip_adapter]
    places = [_within(one.name) for one in found]
    entries = []
    for one, (source, folder, name) in zip(found, places, strict=True):
        path = ip_adapter_files.find(source, name, folder, None, HubOptions())
        entries.append(_entry(path, one, "--ip-adapter", asked))
    sources, folders, names = (list(column) for column in zip(*places, strict=True))
    pipe.load_ip_adapter(sources, subfolder=folders, weight_name=names)
    pipe.set_ip_adapter_scale([one.scale for one in found])
    return {"ip_adapter": entries}


def _within(name: str) -> tuple[str, str | None, str | None]:
    """A file as it is loaded: itself, or a repository, the folder inside and the file's name."""
    if Path(name).is_file():
        return name, None, None
    owner, *rest = name.split("/")
    if len(rest) < 2 or not rest[-1].endswith(".safetensors"):
        raise InputError(
            f"--ip-adapter {name!r} is no file; of a repository give OWNER/NAME/…/FILE.safetensors."
        )
    return f"{owner}/{rest[0]}", "/".join(rest[1:-1]) or None, rest[-1]


def _words(pipe: Any, asked: Request) -> dict[str, Any]:
    from calotype.adapters import words
    from calotype.adapters.formats import files

    entries = []
    for name in asked.embedding:
        path = files.find(name, None, None, None, files.hub.HubOptions(), (words.STEM,))
        entries.append({"file": name, "sha256": _digest(path, name, "--embedding", asked.known)})
        word = words.read(path)
        pipe.load_textual_inversion(path, token=word.name or path.stem)
    return {"embedding": entries} if entries else {}


def _entry(path: Path, one: Weighted, option: str, asked: Request) -> dict[str, Any]:
    return {"file": one.name, "sha256": _digest(path, one.name, option, asked.known), "scale": one.scale}


def requested(recorded: dict[str, Any]) -> dict[str, Any]:
    """A request's part that says which adapters go in, from the settings of what was made with them."""
    scaled = {name: recorded.get(name, ()) for name in ("lora", "ip_adapter")}
    return {
        **{name: tuple(f"{one['file']}:{one['scale']}" for one in found) for name, found in scaled.items()},
        "embedding": tuple(entry["file"] for entry in recorded.get("embedding", ())),
    }


def _digest(path: Path, name: str, option: str, known: dict[str, str]) -> str:
    """The SHA-256 (hexadecimal) of a file, which must be the known one if there is one."""
    if path.suffix != ".safetensors":
        raise InputError(f"{option} {name}: only safetensors are read here; convert a pickle that you trust.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if known.get(name, found) != found:
        raise InputError(
            f"{name!r} has changed since the picture was made with it; give the former one with {option}, or this one."
        )
    return found
