"""Refusals: arguments that a scheduler cannot take, said in words before anything is computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from calotype.core.errors import InputError


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ``InputError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InputError(
            f"{name}={shortened(value)} is not known; choose one of {', '.join(map(repr, allowed))}."
        )


MOST_TRAINING_STEPS = 1_000_000
"""The longest noise table that is made; published ones have 1000 steps."""

_LARGEST = 2**31 - 1


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
        good = listed and len(value) <= MOST_TRAINING_STEPS and all(_is_number(item) for item in value)
        what = "a list of numbers"
    else:
        return
    if not good:
        raise InputError(f"{name}={shortened(value)} is not {what}, as this option must be.")
    if name == "num_train_timesteps" and not 1 <= value <= MOST_TRAINING_STEPS:
        raise InputError(f"{name}={value} is not between 1 and {MOST_TRAINING_STEPS:,}.")
    if name in ("beta_start", "beta_end") and not 0 <= value <= 1:
        raise InputError(f"{name}={value} is not between 0 and 1, as a variance that noise adds must be.")


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


def step_count(value: Any, limit: int | None = None) -> int:
    """``num_inference_steps`` as a positive integer, at most ``limit``."""
    try:
        steps = operator.index(value)
    except TypeError:
        raise InputError(f"num_inference_steps={value!r} is not a whole number of steps.") from None
    if steps < 1:
        raise InputError(f"num_inference_steps={steps} makes no run: give at least 1.")
    if limit is not None and steps > limit:
        raise InputError(
            f"num_inference_steps={steps} is more than the {limit} steps that the model was trained with "
            f"(num_train_timesteps): give at most {limit}."
        )
    return steps


def exactly_one(**given: Any) -> None:
    """Raise ``InputError`` unless exactly one of the arguments is not None."""
    present = [name for name, value in given.items() if value is not None]
    if len(present) != 1:
        raise InputError(f"Give exactly one of {', '.join(given)}; got {' and '.join(present) or 'none'}.")


CONVERSIONS = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}


def conversion(config: Mapping[str, Any]) -> str | None:
    """Which conversion of the noise levels a configuration asks for; raises ``InputError`` if it asks for two."""
    chosen = [kind for kind, flag in CONVERSIONS.items() if config.get(flag)]
    if len(chosen) > 1:
        flags = " and ".join(CONVERSIONS[kind] for kind in chosen)
        raise InputError(f"{flags} exclude each other: set at most one of {', '.join(CONVERSIONS.values())}.")
    return chosen[0] if chosen else None


def steps_or_timesteps(
    config: Mapping[str, Any], num_inference_steps: Any, timesteps: Sequence[float] | None
) -> int:
    """The number of steps, of which or of whose ``timesteps`` one is given; raises ``InputError`` if these are, and
    the noise levels are to be converted."""
    exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
    if timesteps is None:
        return step_count(num_inference_steps)
    for flag in (*CONVERSIONS.values(), "use_lu_lambdas"):
        if config.get(flag):
            raise InputError(
                f"timesteps cannot be given together with {flag}=True: give num_inference_steps."
            )
    return step_count(len(timesteps))
