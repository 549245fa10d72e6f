"""Schedulers by the names that other programs gave them: `Scheduler.named("DPM++ 2M Karras", pipe.scheduler.config)`.

A name is a sampler and, after it, how the noise levels are spaced: the names of AUTOMATIC1111's web UI ("DPM++ 2M SDE
Karras"), of ComfyUI ("dpmpp_2m_sde", "karras") and of InvokeAI ("dpmpp_2m_sde_k") are all read by the same two tables.
Nothing here imports more than the class that is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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

    def of(self, kind: str) -> tuple[str, dict[str, Any]]:
        """Class and options for models of a kind, "discrete", "flow" or "edm"; ``InputError`` if there are none."""
        sampler, spacing = self.sampler, self.spacing
        if sampler is None:
            return self.scheduler, {}
        chosen = {"discrete": (sampler.scheduler, sampler.options), "flow": sampler.flow, "edm": sampler.edm}[
            kind
        ]
        if chosen is None:
            able = ", ".join(row.name for row in SAMPLERS if getattr(row, kind) is not None)
            raise InputError(
                f"{sampler.name} cannot be used with this model, which is {_KINDS[kind]}; these can: {able}."
            )
        scheduler, options = chosen
        if spacing is None or (kind == "flow" and spacing in ("Uniform", "SGM Uniform")):
            return scheduler, dict(options)
        if kind == "discrete":
            extra: Mapping[str, Any] | None = SPACINGS[spacing].options
            if spacing in LEVELS and scheduler.removesuffix("Scheduler") in SPACED_FIRST:
                extra = {**SPACINGS[spacing].options, "timestep_spacing": "linspace"}
        elif kind == "edm":
            extra = SPACINGS[spacing].edm
        else:
            extra = (
                SPACINGS[spacing].options if spacing in LEVELS and "use_flow_sigmas" not in options else None
            )
        if extra is None:
            raise InputError(
                f"{sampler.name} cannot space its levels by {spacing} with this model, which is {_KINDS[kind]}: leave "
                f"{spacing} out."
            )
        return scheduler, {**options, **extra}


_KINDS = {"flow": "a flow model", "edm": "an EDM", "discrete": "one of training steps"}


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
                False  # its default is for pixels; who trained without the option did not clip
            )
    known = init_parameters(cls)
    made: SchedulerMixin = cls.from_config(
        given, **{key: value for key, value in options.items() if key in known}
    )
    return made


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
    key = _key(name)
    samplers, classes = _samplers(), _classes()
    for plain in _trimmed(key):
        if plain in samplers:
            return Choice(samplers[plain].scheduler, samplers[plain])
        for ending, spacing in _endings():
            row = samplers.get(plain.removesuffix(ending)) if plain.endswith(ending) else None
            if row is not None:
                return _spaced(row, None if spacing == "Automatic" else spacing)
        if plain in classes and _elsewhere(plain) is None:
            return Choice(classes[plain])
    raise InputError(_unknown(name, key))


def _spaced(row: Sampler, spacing: str | None) -> Choice:
    """A sampler with a spacing, or its twin if only that has it."""
    if spacing is None or spacing in row.spacings:
        return Choice(row.scheduler, row, spacing)
    twin = _samplers()[_key(row.twin)] if row.twin else None
    if twin is not None and spacing in twin.spacings:
        return Choice(twin.scheduler, twin, spacing)
    able = ", ".join(f"{row.name} {word}" for word in row.spacings)
    raise InputError(
        f"{row.name} cannot space its levels by {spacing}. "
        + (f"There are: {able}." if able else "Leave it out.")
    )


def _unknown(name: str, key: str) -> str:
    nearest = _elsewhere(key)
    if nearest is not None:
        return f"{name} is a sampler that calotype does not have. The nearest is {nearest}."
    shown = {
        **{_key(cls): cls for cls in _classes().values()},
        **_classes(),
        **{k: v.name for k, v in _all().items()},
    }
    near = difflib.get_close_matches(key, shown, n=1, cutoff=0.5)
    hint = f" Did you mean {shown[near[0]]}?" if near else ""
    names = ", ".join(row.name for row in SAMPLERS)
    return f"There is no scheduler {name!r}.{hint} There are: {names}; each with {', '.join(LEVELS)} or none after it."


def _elsewhere(key: str) -> str | None:
    """The nearest sampler to one that only other programs have; None if they have no such one either."""
    known = {_key(name): nearest for name, nearest in ELSEWHERE.items()}
    endings = ("", *(ending for ending, _ in _endings()))
    found = (
        known.get(plain.removesuffix(end))
        for plain in _trimmed(key)
        for end in endings
        if plain.endswith(end)
    )
    return next((nearest for nearest in found if nearest), None)


def spoken(scheduler: str, config: Mapping[str, Any]) -> str:
    """What other programs call a scheduler of this class and configuration; the class's name if they have none."""
    best: tuple[int, str] | None = None
    for row in SAMPLERS:
        for kind in ("discrete", "flow", "edm"):
            cls, options = (
                (row.scheduler, row.options) if kind == "discrete" else getattr(row, kind) or ("", {})
            )
            agreeing = sum(config[key] == value for key, value in options.items() if key in config)
            if cls == scheduler and agreeing == sum(key in config for key in options):
                best = max(best or (-1, ""), (agreeing, row.name), key=lambda found: found[0])
    if best is None:
        return scheduler
    row = _samplers()[_key(best[1])]
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


def _trimmed(key: str) -> Iterator[str]:
    """A name as it is, and without what some programs put around it (``k_euler``, ``dpmpp_sde_gpu``)."""
    yield key
    for plain in (key.replace("gpu", ""), key.removeprefix("sample"), key.removeprefix("k")):
        if plain != key:
            yield plain


def _samplers() -> dict[str, Sampler]:
    return {_key(name): row for row in SAMPLERS for name in (row.name, *row.aliases)}


def _classes() -> dict[str, str]:
    """The public classes by their names, with and without "Scheduler" and "Discrete"."""
    public = [name for name in importlib.import_module("calotype").__all__ if name.endswith("Scheduler")]
    found: dict[str, str] = {}
    for name in public:
        short = name.removesuffix("Scheduler")
        if short:
            found |= {_key(spelling): name for spelling in (name, short)}
    return found


def _all() -> dict[str, Sampler]:
    return {
        _key(f"{name} {word}"): row
        for row in SAMPLERS
        for name in (row.name, *row.aliases)
        for word in ("", *row.spacings)
    }


def _endings() -> list[tuple[str, str]]:
    """How a name can end for each spacing, longest first."""
    pairs = [(_key(word), name) for name, spacing in SPACINGS.items() for word in (name, *spacing.aliases)]
    return sorted(pairs, key=lambda pair: -len(pair[0]))
