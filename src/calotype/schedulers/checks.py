"""Refusals: arguments that a scheduler cannot take, said in words before anything is computed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from calotype.core.errors import InputError


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ``InputError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InputError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}.")


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
