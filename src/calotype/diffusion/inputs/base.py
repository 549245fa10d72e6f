"""What the groups of arguments are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Self

from calotype.core.errors import InputError

ANY = "*"
"""In place of the name of an argument that another goes with: every pipeline takes that one."""


def argument(default: Any, doc: str, *, beside: str | None = None) -> Any:
    """A field of an input group: its default value and the sentence that describes it.

    ``beside`` is for an argument that no public signature has: the name of the argument that it goes with, or ``ANY``.
    """
    return field(default=default, metadata={"doc": doc, "beside": beside}, kw_only=beside is not None)


@dataclass(frozen=True)
class Inputs:
    """Base of the groups; abstract."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """The group's values among a call's arguments; what the pipeline does not take keeps its default."""
        names = _names(cls)  # type: ignore[arg-type]  # mypy takes the class for one of its dataclasses
        return cls(**{name: arguments[name] for name in names if name in arguments})


@cache
def _names(group: type[Inputs]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(group))


def positive(name: str, value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of {what}, at least 1, not {value!r}.")
    return value


def each(name: str, value: int | None, what: str = "pictures") -> int:
    """How many to make of each subject: a positive number, where None means one."""
    return 1 if value is None else positive(name, value, what)


def finite(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{name} must be a finite number, not {value!r}.")
    return number


def text_list(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} must be a text or a list of texts, not {value!r}.")
    if not texts:
        raise InputError(f"{name} is an empty list; give at least one text.")
    for text in texts:
        _whole(name, text)
    return tuple(texts)


def _whole(name: str, text: str) -> None:
    """Refuse a text that no tokenizer can read: one with half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InputError(
            f"{name} holds a lone surrogate, U+{ord(half):04X} at position {error.start}, which is half of a "
            f"character: it was cut or decoded wrongly before it came here."
        ) from None
