"""Acceleration of a pipeline: which of its models it concerns, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import nn

from calotype.acceleration.concerned import methods_of
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
        """A family (a dataclass of components) whose models on CUDA are called by what makes them faster."""
        found: dict[str, Any] = {}
        for one in fields(family):  # type: ignore[arg-type]
            model = getattr(family, one.name)
            methods = methods_of(type(model))
            if methods is not None and is_on_device(model):
                from calotype.acceleration.accelerated import Accelerated

                found[one.name] = Accelerated(model, self.options, methods)
        return replace(family, **found) if found else family  # type: ignore[type-var]

    def report(self) -> str:
        """A line for each model that is called in each step, decodes or reads: what is in use, or why nothing is."""
        lines = []
        for name, model in self._components().items():
            if methods_of(type(getattr(model, "_orig_mod", model))) is None:
                continue
            if not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):
                what = "plain: it is compiled already"
            elif is_on_device(model):
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
