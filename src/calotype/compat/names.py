"""Where the reference's modules and names are in calotype."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import calotype
from calotype.core.version import FORMAT_VERSION

REFERENCE = "diffusers"

_MODULES = re.compile(
    r"""
    (configuration_utils | image_processor | pipeline_utils | pipelines | models | schedulers | utils)
    | pipelines\.[a-z_0-9]+ (\.(pipeline_\w+ | safety_checker | pipeline_output | text_encoder | watermark))?
    | models\.[a-z_0-9]+
    | models\.(autoencoders | controlnets | transformers | unets)\.[a-z_0-9]+
    | schedulers\.scheduling_\w+
    | utils\.(import_utils | loading_utils | logging | outputs | pil_utils | torch_utils | versions)
    """,
    re.VERBOSE,
)
"""The reference's modules below its root that are answered. Which of them has a name matters little to a program."""

_INSTALLED = re.compile(r"is_(?P<library>[a-z0-9_]+)_available")
_IMPORTED_AS = {"opencv": "cv2", "invisible_watermark": "imwatermark"}
"""Libraries whose module has another name than the question ``is_…_available``."""


def is_module(path: str) -> bool:
    """Whether ``path`` is a module of the reference that has a counterpart here."""
    return path == REFERENCE or _MODULES.fullmatch(path.removeprefix(f"{REFERENCE}.")) is not None


def public_names(path: str) -> list[str]:
    """What ``from path import *`` brings."""
    if path == REFERENCE:
        return list(calotype.__all__)
    package = path.split(".")[1]
    if package == "utils":
        return list(importlib.import_module("calotype.utils").__all__)
    homes = calotype._MODULE_OF
    return [name for name in calotype.__all__ if homes.get(name, "").startswith(f"calotype.{package}.")]


def lookup(path: str, name: str) -> Any:
    """What the reference's module ``path`` calls ``name``; ``LookupError`` where calotype has no such thing."""
    if name in _SAID:
        return _SAID[name]
    if (path == REFERENCE or ".utils" in path) and (asked := _INSTALLED.fullmatch(name)):
        return partial(_is_installed, asked["library"])
    for home in _homes(path):
        value = getattr(home, name, None)
        if value is not None and not name.startswith("_"):
            return value
    raise LookupError(name)


def lacking(path: str, name: str) -> str:
    """The sentence for a name that is not here, with the nearest that is."""
    near = difflib.get_close_matches(name, public_names(path), n=1)
    hint = f" The nearest name is {near[0]}." if near else ""
    return f"calotype has nothing for {path}.{name}.{hint}"


def register_to_config(function: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator of the reference's constructors, which calotype's classes do without: ``function`` as it is."""
    return function


def _is_installed(library: str) -> bool:
    """Whether a library can be imported."""
    return importlib.util.find_spec(_IMPORTED_AS.get(library, library)) is not None


def _homes(path: str) -> Iterator[Any]:
    """The modules of calotype in which a name of the reference's module ``path`` may be, the likeliest first."""
    _, *parts = path.split(".")
    if parts[:1] != ["utils"]:
        yield calotype
    if not parts:
        yield _module("utils")
        return
    leaf = re.sub(r"^(pipeline|scheduling)_", "", parts[-1])
    for candidate in (".".join(parts), f"{parts[0]}.{leaf}", parts[0], *_MORE_HOMES.get(parts[0], ())):
        home = _module(candidate)
        if home is not None:
            yield home


@cache
def _module(path: str) -> Any | None:
    """The module ``calotype.path``, or None where there is none."""
    name = f"calotype.{path}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            return None
        raise


_MORE_HOMES = {
    "configuration_utils": ("core.config",),
    "models": ("models.gaussian", "models.vae", "nn.attention"),
    "pipeline_utils": ("pipelines.outputs",),
    "pipelines": ("pipelines.outputs",),
    "schedulers": ("schedulers.outputs",),
}
"""More places for the names of a package."""

_SAID = {"__version__": FORMAT_VERSION, "register_to_config": register_to_config}
"""Names with an answer of their own."""
