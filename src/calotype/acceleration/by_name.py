"""Which models the options concern that are used by name alone, and what is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from calotype.acceleration import quantised
from calotype.acceleration.concerned import is_stepwise, place_of
from calotype.acceleration.options import Options
from calotype.acceleration.step_cache import Place, fits
from calotype.core.errors import InputError


def concern(options: Options, model: nn.Module) -> bool:
    """Whether something is asked for by name that is for this model, wherever it is."""
    cached = options.step_cache is not None and fits(model)
    return cached or (options.linears is not None and is_stepwise(type(model)))


def check_place(options: Options, model: nn.Module) -> None:
    """Raise ``InputError`` where the device that the model is on cannot do what is asked for."""
    if options.linears is not None and is_stepwise(type(model)):
        quantised.check(options.linears, place_of(model))


def check(options: Options, models: Iterable[object]) -> None:
    """Raise ``InputError`` where what is asked for concerns none of the models, or they have no such branch."""
    networks = [model for model in models if isinstance(model, nn.Module)]
    if options.step_cache is not None:
        fitting = [model for model in networks if fits(model)]
        if not fitting:
            raise InputError("None of the pipeline's models is a U-Net of stages, so no steps can be cached.")
        for model in fitting:
            Place.of(model, options.step_cache.branch)
    if options.linears is not None and not any(is_stepwise(type(model)) for model in networks):
        raise InputError(
            "None of the pipeline's models is called in each step, so linears has nothing to do."
        )
