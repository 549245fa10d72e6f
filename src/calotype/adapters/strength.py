"""How strongly adapters act in one call: a value of the call, so that threads may differ.

A compiled model cannot read a thread's own value. It reads the last one that any thread has set: calls of compiled
models with different strengths at the same time are not told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from calotype.core.errors import InputError

_STRENGTHS: ContextVar[tuple[float, ...]] = ContextVar("calotype_adapter_strengths", default=())


class _Compiled:
    """What compiled code reads: the strength that was set last."""

    def __init__(self) -> None:
        self.strength = 1.0


_COMPILED = _Compiled()


def strength() -> float:
    """What the strengths of all adapters are multiplied by, here and now."""
    if torch.compiler.is_compiling():
        return _COMPILED.strength
    now = _STRENGTHS.get()
    return now[-1] if now else 1.0


@contextmanager
def at_strength(value: float | None) -> Iterator[None]:
    """Within this, in this thread, adapters act ``value`` times as strongly; None leaves them as they are.

    Raises ``InputError`` for what is not a number.
    """
    if value is None:
        yield
        return
    push(value)
    try:
        yield
    finally:
        pop()


def push(value: float) -> None:
    """The strength from now on, until :func:`pop`: for hooks, which cannot hold a ``with``."""
    amount = checked("scale", value)
    _COMPILED.strength = amount
    if not torch.compiler.is_compiling():
        _STRENGTHS.set((*_STRENGTHS.get(), amount))


def pop() -> None:
    """The strength that was before :func:`push`."""
    if torch.compiler.is_compiling():
        _COMPILED.strength = 1.0
        return
    _STRENGTHS.set(_STRENGTHS.get()[:-1])
    _COMPILED.strength = strength()


def checked(name: str, value: object) -> float:
    """A strength as a float; ``InputError`` for what is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise InputError(f"{name} must be a number, not {value!r}.")
    return float(value)
