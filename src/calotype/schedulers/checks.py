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


def conversion(config: Mapping[str, Any], more: Mapping[str, str] | None = None) -> str | None:
    """Which conversion of the noise levels a configuration asks for; raises ``InputError`` if it asks for two."""
    flags = {
        "use_karras_sigmas": "karras",
        "use_exponential_sigmas": "exponential",
        "use_beta_sigmas": "beta",
        **(more or {}),
    }
    chosen = [flag for flag in flags if config.get(flag)]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} exclude each other: set at most one of {', '.join(flags)}.")
    return flags[chosen[0]] if chosen else None


def refuse_timesteps(config: Mapping[str, Any]) -> None:
    """Raise ``InputError`` if custom timesteps are given where the noise levels are converted."""
    names = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    for name in names:
        if config.get(name):
            raise InputError(
                f"timesteps cannot be given together with {name}=True: give num_inference_steps."
            )
