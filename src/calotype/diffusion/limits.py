"""How much one call may ask for; checked before anything is allocated, and raised with :func:`set_limits`."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace

from calotype.core.errors import InputError


@dataclass(frozen=True)
class Limits:
    """The most that one call may ask for."""

    side: int = 16_384
    """Pixels along one side of a picture."""
    pictures: int = 1_024
    """Pictures in one call: prompts times pictures a prompt."""
    pixels: int = 2**28
    """Pixels of all the pictures of one call together (256 pictures of 1024x1024)."""
    steps: int = 10_000
    """Denoising steps."""
    tokens: int = 10_000
    """Tokens of one prompt that is encoded in chunks."""

    def check(self, name: str, value: int, what: str) -> None:
        """Raise ``InputError`` when ``value`` is over the limit called ``name``."""
        limit = getattr(self, name)
        if value > limit:
            raise InputError(
                f"{what} is over the limit of {limit:,}; if that is what you want, raise it with "
                f"calotype.set_limits({name}={value}) or the environment variable CALOTYPE_MAX_{name.upper()}."
            )


def _from_environment() -> Limits:
    given = {}
    for field in fields(Limits):
        text = os.environ.get(f"CALOTYPE_MAX_{field.name.upper()}")
        if text is not None:
            try:
                given[field.name] = int(text)
            except ValueError:
                raise InputError(
                    f"The environment variable CALOTYPE_MAX_{field.name.upper()} is {text!r}, not a whole number."
                ) from None
    return Limits(**given)


_limits = _from_environment()


def limits() -> Limits:
    """The limits in force."""
    return _limits


def set_limits(**values: int) -> Limits:
    """Change limits of this process, by the names of the fields of :class:`Limits`; returns the former ones."""
    global _limits
    known = [field.name for field in fields(Limits)]
    for name, value in values.items():
        if name not in known:
            raise InputError(f"There is no limit called {name!r}; there are {', '.join(known)}.")
        if not isinstance(value, int) or value < 1:
            raise InputError(f"The limit {name} must be a whole number of at least 1, not {value!r}.")
    former, _limits = _limits, replace(_limits, **values)
    return former
