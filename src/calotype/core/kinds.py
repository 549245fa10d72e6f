"""Values of configurations held against the types that signatures state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from calotype.core.errors import InputError

_LARGEST = 2**31 - 1
_LONGEST = 1_000_000
"""Entries of a list."""


def of_kind(name: str, value: Any, kind: str) -> None:
    """Raise ``InputError`` unless ``value`` is what an option of this type, as its signature says it, can be.

    So a configuration with a text where a number belongs is refused when it is read, not in the first step.
    """
    if value is None and ("None" in kind or kind == "bool"):
        return
    if kind.startswith("bool"):
        good, what = hasattr(value, "__bool__") and value in (0, 1), "true or false"
    elif kind == "str":
        good, what = isinstance(value, str), "a text"
    elif kind.startswith("int"):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        good, what = whole and abs(int(value)) <= _LARGEST, f"a whole number of at most {_LARGEST:,}"
    elif kind.startswith("float"):
        good, what = _is_number(value), "a number"
    elif "Sequence" in kind:
        listed = (isinstance(value, Sequence) and not isinstance(value, str)) or getattr(
            value, "ndim", 0
        ) == 1
        good = listed and len(value) <= _LONGEST and all(_is_number(item) for item in value)
        what = "a list of numbers"
    else:
        return
    if not good:
        raise InputError(f"{name}={shortened(value)} is not {what}, as this option must be.")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return False
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # an array, or an integer past all floats
        return False


def shortened(value: Any) -> str:
    """``value`` as a message shows it, of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
