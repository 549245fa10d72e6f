"""The one switch for all pipelines; the environment variable ``CALOTYPE_ACCELERATION`` says where it starts."""

from __future__ import annotations

import os

VARIABLE = "CALOTYPE_ACCELERATION"
_OFF = ("", "0", "off", "false", "no")

_on = os.environ.get(VARIABLE, "1").strip().lower() not in _OFF


def on() -> None:
    """From now on, pipelines on CUDA compute by what makes them faster, where their own setting does not forbid it."""
    global _on
    _on = True


def off() -> None:
    """From now on, pipelines compute as plain PyTorch."""
    global _on
    _on = False


def is_on() -> bool:
    """Whether the switch is on."""
    return _on
