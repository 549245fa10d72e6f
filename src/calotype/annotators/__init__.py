"""Control pictures: what a ControlNet or T2I-Adapter reads, made from a photograph or from keypoints.

Each function takes a path, an address or a PIL image and returns an RGB picture of the same size, in the form that the
published ControlNets were trained with. Each is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "canny": "calotype.annotators.edges",
    "depth": "calotype.annotators.depth_map",
    "lineart": "calotype.annotators.edges",
    "make_inpaint_condition": "calotype.annotators.inpaint_condition",
    "pose": "calotype.annotators.skeleton",
    "scribble": "calotype.annotators.edges",
}
"""Name -> the module that defines it."""

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"calotype.annotators has no {name!r}.")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
