"""What functions take, found out once for each."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

_NAMES: weakref.WeakKeyDictionary[FunctionType, tuple[str, ...]] = weakref.WeakKeyDictionary()


def argument_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments of a function; a method's begin with ``self``."""
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, FunctionType):
        return tuple(inspect.signature(function).parameters)
    found = _NAMES.get(plain)
    if found is None:
        found = _NAMES[plain] = tuple(inspect.signature(plain).parameters)
    return found
