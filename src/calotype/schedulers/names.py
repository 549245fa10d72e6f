"""Schedulers by the names that other programs gave them: `Scheduler.named("DPM++ 2M Karras", pipe.scheduler.config)`.

A name is a sampler and, after it, how the noise levels are spaced: the names of AUTOMATIC1111's web UI ("DPM++ 2M SDE
Karras"), of ComfyUI ("dpmpp_2m_sde", "karras") and of InvokeAI ("dpmpp_2m_sde_k") are all read by the same two tables.
Nothing here imports more than the class that is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from calotype.core.config import init_parameters
from calotype.core.errors import InputError
from calotype.schedulers.samplers import (
    CONVERSIONS,
    ELSEWHERE,
    LEVELS,
    SAMPLERS,
    SPACED_FIRST,
    SPACINGS,
    Sampler,
)

if TYPE_CHECKING:
    from calotype.schedulers.scheduler import SchedulerMixin


@dataclass(frozen=True)
class Choice:
    """What a name means: a sampler and a spacing of its levels, or (``sampler`` None) a class with its own options."""

    scheduler: str
    sampler: Sampler | None = None
    spacing: str | None = None

    def __str__(self) -> str:
        return self.scheduler if self.sampler is None else self.sampler.name

    def of(self, kind: str) -> tuple[str, dict[str, Any]]:
        """Class and options for models of a kind, "discrete", "flow" or "edm"; ``InputError`` if there are none."""
        sampler, spacing = self.sampler, self.spacing
        if sampler is None:
            return self.scheduler, {}
        chosen = sampler.of(kind)
        if chosen is None:
            able = ", ".join(row.name for row in SAMPLERS if row.of(kind) is not None)
            raise InputError(
                f"{sampler.name} cannot be used with this model, which is {_KINDS[kind]}; these can: {able}."
            )
        scheduler, options = chosen
        if spacing is None or (kind == "flow" and spacing in ("Uniform", "SGM Uniform")):
            return scheduler, dict(options)
        extra = SPACINGS[spacing].edm if kind == "edm" else SPACINGS[spacing].options
        if kind == "flow" and (spacing not in LEVELS or "use_flow_sigmas" in options):
            extra = None
        if extra is None:
            raise InputError(
                f"{sampler.name} cannot space its levels by {spacing} with this model, which is {_KINDS[kind]}: leave "
                f"{spacing} out."
            )
        if kind == "discrete" and spacing in LEVELS and scheduler.removesuffix("Scheduler") in SPACED_FIRST:
            extra = {**extra, "timestep_spacing": "linspace"}
        return scheduler, {**options, **extra}


_KINDS = {"discrete": "one of training steps", "flow": "a flow model", "edm": "an EDM"}


class Scheduler:
    """The door to all schedulers by the names that people know: ``Scheduler.named``."""

    @staticmethod
    def named(name: str, config: Mapping[str, Any] | None = None) -> SchedulerMixin:
        """The scheduler of this name, as ``pipe.scheduler = Scheduler.named("Euler a", pipe.scheduler.config)``.

        ``config`` says what the model was trained with; without one the class's defaults hold. For flow models and EDMs
        the class of the same method for these is taken. The name decides the solver and the spacing of the noise
        levels, whatever ``config`` has for them. Names of classes are names too. Case, spaces, ``-`` and ``_`` do not
        matter, ``+`` is ``p``. Raises ``InputError`` with the nearest name.
        """
        return scheduler_named(name, config)

    def __init__(self) -> None:
        raise InputError(
            "Scheduler is not made itself: Scheduler.named('Euler a', pipe.scheduler.config) is one."
        )


def scheduler_named(name: str, config: Mapping[str, Any] | None = None) -> SchedulerMixin:
    """The same as ``Scheduler.named``."""
    choice = find(name)
    given: Mapping[str, Any] = {} if config is None else config
    kind = _kind(given)
    class_name, options = choice.of(kind)
    cls = getattr(importlib.import_module("calotype"), class_name)
    if choice.sampler is not None:
        options = {**{flag: False for flag in CONVERSIONS if given.get(flag)}, **options}
        if kind == "flow":
            shift = given.get("flow_shift" if given.get("use_flow_sigmas") else "shift", 1.0)
            options |= {"flow_shift" if "use_flow_sigmas" in options else "shift": shift}
        if config is not None and "clip_sample" not in given:
            options["clip_sample"] = (
                False  # its default is for pixels; models trained without it did not clip
            )
    known = init_parameters(cls)
    return cls.from_config(given, **{key: value for key, value in options.items() if key in known})


def _kind(config: Mapping[str, Any]) -> str:
    """For which kind of model a configuration is."""
    if config.get("use_flow_sigmas") or ("shift" in config and "beta_schedule" not in config):
        return "flow"
    if "sigma_data" in config and "rho" in config:
        return "edm"
    return "discrete"


def find(name: str) -> Choice:
    """What a name means, without importing its class; raises ``InputError`` with the nearest name."""
    if not isinstance(name, str):
        raise InputError(f"A scheduler's name is text, such as 'DPM++ 2M Karras', not {name!r}.")
    key, meanings = _key(name), _meanings()
    # as it is, and without what some programs put around it (``k_euler``, ``dpmpp_sde_gpu``)
    spellings = (key, key.replace("gpu", ""), key.removeprefix("sample"), key.removeprefix("k"))
    found = next((meanings[spelling] for spelling in spellings if spelling in meanings), None)
    if isinstance(found, Choice):
        return _able(found)
    if found is not None:
        raise InputError(f"{name} is a sampler that calotype does not have. The nearest is {found}.")
    near = difflib.get_close_matches(key, meanings, n=1, cutoff=0.5)
    hint = f" Did you mean {meanings[near[0]]}?" if near else ""
    raise InputError(
        f"There is no scheduler {name!r}.{hint} There are: {', '.join(row.name for row in SAMPLERS)}; each with "
        f"{', '.join(LEVELS)} or none after it."
    )


def _able(choice: Choice) -> Choice:
    """A sampler with a spacing, or its twin if only that has it."""
    row, spacing = choice.sampler, choice.spacing
    if row is None or spacing is None or spacing in row.spacings:
        return choice
    twin = next((other for other in SAMPLERS if other.name == row.twin), None)
    if twin is not None and spacing in twin.spacings:
        return Choice(twin.scheduler, twin, spacing)
    able = ", ".join(f"{row.name} {word}" for word in row.spacings)
    raise InputError(
        f"{row.name} cannot space its levels by {spacing}. "
        + (f"There are: {able}." if able else "Leave it out.")
    )


@cache
def _meanings() -> dict[str, Choice | str]:
    """All spellings of all names; of samplers that only other programs have the nearest one's name.

    Classes go by their names with and without "Scheduler", samplers by theirs with and without a spacing.
    """
    found: dict[str, Choice | str] = {}
    for cls in importlib.import_module("calotype").__all__:
        if cls.endswith("Scheduler") and cls != "Scheduler":
            found[_key(cls)] = found[_key(cls.removesuffix("Scheduler"))] = Choice(cls)
    endings = {_key(word): name for name, spacing in SPACINGS.items() for word in (name, *spacing.aliases)}
    for ending, spacing in {**endings, "": "Automatic"}.items():  # names without a spacing last: they win
        found |= {_key(name) + ending: nearest for name, nearest in ELSEWHERE.items()}
        chosen = None if spacing == "Automatic" else spacing
        for row in SAMPLERS:
            found |= {
                _key(name) + ending: Choice(row.scheduler, row, chosen) for name in (row.name, *row.aliases)
            }
    return found


def spoken(scheduler: str, config: Mapping[str, Any]) -> str:
    """What other programs call a scheduler of this class and configuration; the class's name if they have none."""
    fitting: list[tuple[int, Sampler]] = []
    for row in SAMPLERS:
        for cls, options in filter(None, map(row.of, _KINDS)):
            known = options.keys() & config.keys()
            if cls == scheduler and all(config[key] == options[key] for key in known):
                fitting.append((len(known), row))
    if not fitting:
        return scheduler
    _, row = max(fitting, key=lambda fit: fit[0])
    words = [
        word
        for word, spacing in SPACINGS.items()
        if word in (*LEVELS, "Lu")
        and all(config.get(k) == v and k not in row.options for k, v in spacing.options.items())
    ]
    return " ".join([row.name, *words])


def _key(name: str) -> str:
    """A name without what does not matter in it."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("plus", "+").replace("+", "p"))
