"""Noise schedulers: noise table, time grid, prediction and solver are separate parts; a class is a choice of them."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    public = importlib.import_module("calotype")
    if name.startswith("__") or name not in public.__all__:
        raise AttributeError(f"calotype.schedulers has no {name!r}.")
    return getattr(public, name)
