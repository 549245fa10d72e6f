"""The helpers that users import by name: pictures in and out, logging, noise. Each is imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "calotype.core.outputs": ("BaseOutput",),
    "calotype.diffusion.images": ("numpy_to_pil", "pt_to_pil"),
    "calotype.utils.images": (
        "PIL_INTERPOLATION",
        "contact_sheet",
        "load_image",
        "make_image_grid",
    ),
    "calotype.utils.logging": ("get_logger",),
    "calotype.utils.videos": ("export_to_gif", "export_to_video", "load_video"),
    "calotype.utils.versions": ("check_min_version",),
}
"""Module -> the names that it defines."""

_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_MODULES = ("logging", "metadata", "torch_utils")

__all__ = [*_MODULE_OF, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"calotype.utils.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"calotype.utils has no {name!r}.")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
