"""Acceleration of a pipeline: which of its models it concerns, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import nn

from calotype.acceleration.concerned import methods_of, place_of
from calotype.acceleration.options import Options

Bound = TypeVar("Bound")


class Acceleration:
    """What makes a pipeline's calls faster, from outside of its models; see :meth:`report`."""

    def __init__(self, components: Callable[[], Mapping[str, Any]], options: Options) -> None:
        self._components = components
        self.options = options

    def __repr__(self) -> str:
        return f"Acceleration({self.options})"

    def bound(self, family: Bound) -> Bound:
        """A family (a dataclass of components) whose models on CUDA are called by what makes them faster.

        So are models elsewhere that something is asked for by name; ``InputError`` where their device cannot do it.
        """
        found: dict[str, Any] = {}
        for one in fields(family):  # type: ignore[arg-type]
            model = getattr(family, one.name)
            methods = methods_of(type(model))
            if methods is not None and (is_on_device(model) or self._by_name(model)):
                from calotype.acceleration.accelerated import Accelerated
                from calotype.acceleration.by_name import check_place

                check_place(self.options, model)
                found[one.name] = Accelerated(model, self.options, methods)
        return replace(family, **found) if found else family  # type: ignore[type-var]

    def _by_name(self, model: nn.Module) -> bool:
        """Whether something is asked for by name that concerns this model, wherever it is."""
        if not self.options.by_name:
            return False
        from calotype.acceleration import by_name

        return by_name.concern(self.options, model)

    def check(self) -> None:
        """Raise ``InputError`` where what is asked for by name concerns no model, or they have no such branch."""
        if self.options.by_name:
            from calotype.acceleration import by_name

            by_name.check(self.options, self._components().values())

    def report(self) -> str:
        """A line for each model that is called in each step, decodes or reads: what is in use, or why nothing is."""
        from calotype.acceleration import host

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
            if isinstance(model, nn.Module) and place_of(model).type == "cpu":
                what += host.note(next((tensor.dtype for tensor in model.parameters()), torch.float32))
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
        if steps is not None:
            steps.begin(step)


def give_back(models: Iterable[Any]) -> None:
    """Forget what was captured of models that have left the device, so that its memory is free."""
    known = sys.modules.get("calotype.acceleration.accelerated")  # imported once something is captured
    for model in models:
        if known is not None and isinstance(model, nn.Module) and not is_on_device(model):
            known.forget(model)


def is_on_device(model: nn.Module) -> bool:
    """Whether a model is where calls can be made faster."""
    return place_of(model).type in KINDS


KINDS = {"cuda"}
"""The kinds of devices that acceleration is for."""
