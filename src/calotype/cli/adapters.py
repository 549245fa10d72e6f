"""LoRA weights and learned words that go in: found, known by their contents, loaded and recorded."""

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


class Lora(NamedTuple):
    """A file, folder or repository of LoRA weights, and how strongly they act."""

    name: str
    scale: float


def lora_of(text: str) -> Lora:
    """``FILE`` or ``FILE:scale`` taken apart; ``InputError`` where there is nothing before the scale."""
    match = _SCALED.fullmatch(text)
    lora = Lora(match["name"], float(match["scale"])) if match else Lora(text, 1.0)
    if not lora.name.strip() or not math.isfinite(lora.scale):
        raise InputError(
            f"--lora {text!r} names no file; give FILE or FILE:scale, as in style.safetensors:0.7."
        )
    return lora


def load(pipe: Any, asked: Request) -> dict[str, Any]:
    """Give the pipeline the adapters that are asked for; returns them as settings of what is made.

    Raises ``InputError`` where the pipeline takes none, or where a file is not what it was when the recorded picture
    was made with it.
    """
    from calotype.adapters import words
    from calotype.adapters.formats import files

    if not asked.lora and not asked.embedding:
        return {}
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(
            f"{asked.model} is a {type(pipe).__name__}, which takes no --lora and no --embedding."
        )
    recorded: dict[str, Any] = {}
    scales = {}
    for number, lora in enumerate(map(lora_of, asked.lora)):
        path = files.find(lora.name, None, None, None, files.hub.HubOptions())
        entry = {
            "file": lora.name,
            "sha256": _digest(path, lora.name, "--lora", asked.known),
            "scale": lora.scale,
        }
        recorded.setdefault("lora", []).append(entry)
        pipe.load_lora_weights(path, adapter_name=f"lora_{number}")
        scales[f"lora_{number}"] = lora.scale
    if scales:
        pipe.set_adapters([*scales], [*scales.values()])
    for name in asked.embedding:
        path = files.find(name, None, None, None, files.hub.HubOptions(), (words.STEM,))
        entry = {"file": name, "sha256": _digest(path, name, "--embedding", asked.known)}
        recorded.setdefault("embedding", []).append(entry)
        word = words.read(path)
        pipe.load_textual_inversion(path, token=word.name or path.stem)
    return recorded


def requested(recorded: dict[str, Any]) -> dict[str, Any]:
    """A request's part that says which adapters go in, from the settings of what was made with them."""
    loras, embeddings = recorded.get("lora", ()), recorded.get("embedding", ())
    return {
        "lora": tuple(f"{entry['file']}:{entry['scale']}" for entry in loras),
        "embedding": tuple(entry["file"] for entry in embeddings),
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
