"""The pieces of a file brought to the layers of models, and an account of what found its place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from calotype.adapters import model as adapted
from calotype.adapters.formats import files
from calotype.adapters.formats.building import built
from calotype.adapters.formats.keys import Contents, likely_for, sorted_out
from calotype.adapters.formats.layer_names import known_as
from calotype.adapters.model import layers_of
from calotype.adapters.updates import Update, with_rank
from calotype.core import hub
from calotype.core.errors import InputError, WeightsError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Matched:
    """Updates by model and layer, and what no layer was found for."""

    updates: Mapping[str, Mapping[str, Update]]
    left: tuple[str, ...]


def matched(contents: Contents, models: Mapping[str, nn.Module], default: str) -> Matched:
    """Make the updates that ``contents`` has for ``models``; those of no model's name are for the ``default`` one.

    Raises ``WeightsError`` where no piece has a layer here, where two are for one layer, and for shapes that do not
    fit. A warning counts the pieces that have no layer.
    """
    layers = {model: layers_of(module) for model, module in models.items()}
    names = {model: known_as(own) for model, own in layers.items()}
    updates: dict[str, dict[str, Update]] = {}
    left = list(contents.strange)
    try:
        for piece in contents.pieces:
            model = piece.model or default
            name = names.get(model, {}).get(piece.layer)
            if name is None:
                left += piece.keys
            elif name in updates.setdefault(model, {}):
                raise WeightsError(f"{contents.origin} has two updates for {model}.{name}.")
            else:
                updates[model][name] = built(piece, layers[model][name], name)
    except WeightsError as error:
        raise WeightsError(f"{contents.origin}: {error}{likely_for(contents)}") from error
    found = sum(map(len, updates.values()))
    if not found:
        what = f"for example {left[0]}" if left else "it is empty"
        raise WeightsError(
            f"{contents.origin} has nothing for {' or '.join(models)} ({len(left)} keys, {what})."
            f"{likely_for(contents)}"
        )
    if left:
        logger.warning(
            "%s: %d layers have got an update, and %d keys have no place, such as %s; they have no effect.",
            contents.origin,
            found,
            len(left),
            left[0],
        )
    return Matched(updates, tuple(left))


def opened(source: files.Source, prefix: str | None, kwargs: dict[str, Any]) -> Contents:
    """What a file holds; ``kwargs`` are the caller's other arguments. Raises ``InputError`` for an unknown one."""
    options = hub.HubOptions.take(kwargs)
    chosen = {name: kwargs.pop(name, None) for name in ("weight_name", "subfolder", "use_safetensors")}
    for name in _NO_EFFECT:
        kwargs.pop(name, None)
    if kwargs:
        raise InputError(f"Loading LoRA weights takes no argument {', '.join(kwargs)}.")
    state, configs, origin = files.read(source, options=options, **chosen)
    return sorted_out(state, origin, configs, prefix)


_NO_EFFECT = ("low_cpu_mem_usage", "network_alphas", "metadata", "return_lora_metadata", "_pipeline")
"""Arguments of the reference's loader that only tune how it works inside."""


def load(
    models: Mapping[str, nn.Module],
    contents: Contents,
    default: str,
    name: str | None,
    hotswap: bool,
    rank: int | None,
) -> str:
    """Give ``models`` the adapter in ``contents``, at least at ``rank``; returns its name.

    Without a ``name`` it is the next of ``default_0``, ``default_1``, …. All is checked before any model is changed.
    """
    taken = {known for module in models.values() for known in adapted.adapters(module)}
    chosen = name
    if chosen is None:
        if hotswap:
            raise InputError("hotswap=True needs adapter_name=…, the adapter that is to be exchanged.")
        chosen = next(f"default_{n}" for n in range(len(taken) + 1) if f"default_{n}" not in taken)
    if hotswap and chosen not in taken:
        raise InputError(f"There is no adapter {chosen!r} to exchange; load it without hotswap first.")
    if not hotswap and chosen in taken:
        raise InputError(
            f"The adapter name {chosen!r} is already in use; choose another, delete it with delete_adapters(), or "
            f"exchange it with hotswap=True."
        )
    found = matched(contents, models, default).updates
    if hotswap:
        adapted.exchange(models, chosen, found)
        return chosen
    for model, updates in found.items():
        if rank is not None:
            updates = {layer: with_rank(update, rank) for layer, update in updates.items()}
        if updates:
            adapted.add(models[model], chosen, {layer: update.owned() for layer, update in updates.items()})
    return chosen


def for_model(contents: Contents, model: str) -> Contents:
    """What is for one model, or does not say for which."""
    return replace(contents, pieces=tuple(piece for piece in contents.pieces if piece.model in (model, None)))
