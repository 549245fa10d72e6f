"""Acceleration of a pipeline: which of its models it concerns, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import nn

from calotype.acceleration.concerned import is_stepwise, methods_of
from calotype.acceleration.options import Options
from calotype.acceleration.quantised import check as check_products
from calotype.acceleration.step_cache import CachedSteps, Place
from calotype.acceleration.step_cache import fits as can_be_cached
from calotype.core.errors import InputError

Bound = TypeVar("Bound")


class Acceleration:
    """What makes a pipeline's calls faster, from outside of its models; see :meth:`report`."""

    def __init__(self, components: Callable[[], Mapping[str, Any]], options: Options) -> None:
        self._components = components
        self.options = options

    def __repr__(self) -> str:
        return f"Acceleration({self.options})"

    def bound(self, family: Bound) -> Bound:
        """A family (a dataclass of components) whose models on CUDA are called by what makes them faster."""
        found: dict[str, Any] = {}
        for one in fields(family):  # type: ignore[arg-type]
            model = getattr(family, one.name)
            methods = methods_of(type(model))
            if methods is not None and (is_on_device(model) or self._by_name(model)):
                from calotype.acceleration.accelerated import Accelerated

                if self.options.linears is not None and is_stepwise(type(model)):
                    check_products(self.options.linears, place_of(model))
                found[one.name] = Accelerated(model, self.options, methods)
        return replace(family, **found) if found else family  # type: ignore[type-var]

    def _by_name(self, model: nn.Module) -> bool:
        """Whether something is asked for by name that concerns this model, wherever it is."""
        cached = self.options.step_cache is not None and can_be_cached(model)
        return cached or (self.options.linears is not None and is_stepwise(type(model)))

    def check(self) -> None:
        """Raise ``InputError`` where what is asked for by name concerns no model, or they have no such branch."""
        cache, models = (
            self.options.step_cache,
            [m for m in self._components().values() if isinstance(m, nn.Module)],
        )
        if cache is not None:
            fitting = [model for model in models if can_be_cached(model)]
            if not fitting:
                raise InputError(
                    "None of the pipeline's models is a U-Net of stages, so no steps can be cached."
                )
            for model in fitting:
                Place.of(model, cache.branch)
        if self.options.linears is not None and not any(is_stepwise(type(model)) for model in models):
            raise InputError(
                "None of the pipeline's models is called in each step, so linears has nothing to do."
            )

    def report(self) -> str:
        """A line for each model that is called in each step, decodes or reads: what is in use, or why nothing is."""
        lines = []
        for name, model in self._components().items():
            if methods_of(type(getattr(model, "_orig_mod", model))) is None:
                continue
            if not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):
                what = "plain: it is compiled already"
            elif is_on_device(model) or self._by_name(model):
                from calotype.acceleration.accelerated import runner_of

                what = runner_of(model, self.options).report()
            else:
                what = f"plain: its weights are on {place_of(model).type}"
            lines.append(f"{name} ({type(model).__name__}): {what}.")
        return "\n".join(lines)


def look_again(family: Any) -> None:
    """After a user's code has run in a call: the family's models may not be what they were."""
    for one in fields(family):
        table = getattr(getattr(family, one.name), "__dict__", {})
        if "_runner" in table:
            table["_begun"] = False


def begin_step(family: Any, step: int) -> None:
    """A step of a call begins, in which the family's models are called."""
    for one in fields(family):
        steps = getattr(getattr(family, one.name), "__dict__", {}).get("_steps")
        if isinstance(steps, CachedSteps):
            steps.begin(step)


def give_back(models: Iterable[Any]) -> None:
    """Forget what was captured of models that have left the device, so that its memory is free."""
    known = sys.modules.get("calotype.acceleration.accelerated")  # imported once something is captured
    for model in models:
        if known is not None and isinstance(model, nn.Module) and not is_on_device(model):
            known.forget(model)


def place_of(model: nn.Module) -> torch.device:
    """Where a model's first weight is."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def is_on_device(model: nn.Module) -> bool:
    """Whether a model is where calls can be made faster."""
    return place_of(model).type in KINDS


KINDS = {"cuda"}
"""The kinds of devices that acceleration is for."""
