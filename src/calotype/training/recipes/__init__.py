"""Recipes: what was trained with this package, from data to model card."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.core.errors import InputError

RECIPES = ("pocket", "pocket-motion", "pocket-family", "pocket-lora")
"""The recipes by the names that the command line has for them."""


def train(recipe: str, out: Path, options: Mapping[str, Any]) -> None:
    """Run a recipe; options that are None were not given.

    Raises:
        InputError: there is no such recipe, it has no option of a name that was given, or what the recipe refuses.
    """
    function = _function(recipe)
    given = {name: value for name, value in options.items() if value is not None}
    unknown = [name for name in given if name not in inspect.signature(function).parameters]
    if unknown:
        names = " and no ".join(f"--{name.replace('_', '-')}" for name in unknown)
        raise InputError(f"The recipe {recipe} has no {names}.")
    function(out, **given)


def check_stages(asked: Sequence[str], known: Sequence[str]) -> None:
    """Raises ``InputError`` if no stage is asked for, or one that a recipe does not have."""
    unknown = [stage for stage in asked if stage not in known]
    if unknown or not asked:
        raise InputError(
            f"There is no stage {', '.join(unknown) or '(none named)'}; there are {', '.join(known)}."
        )


def _function(recipe: str) -> Callable[..., None]:
    if recipe == "pocket":
        from calotype.training.recipes.pocket import train_pocket

        return train_pocket
    if recipe == "pocket-motion":
        from calotype.training.recipes.pocket_motion import train_pocket_motion

        return train_pocket_motion
    if recipe == "pocket-family":
        from calotype.training.recipes.pocket_family import train_pocket_family

        return train_pocket_family
    if recipe == "pocket-lora":
        from calotype.training.recipes.pocket_lora import train_pocket_lora

        return train_pocket_lora
    raise InputError(f"There is no recipe {recipe!r}; there are {', '.join(RECIPES)}.")
