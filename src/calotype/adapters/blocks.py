"""How strongly an adapter acts in each block of a UNet: numbers by block, as numbers by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from calotype.adapters.model import Strengths
from calotype.adapters.strength import checked
from calotype.core.errors import InputError

_PLACE = re.compile(r"(?P<side>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>\w+)\.(?P<part>\d+)")


def strengths(given: Any, layers: Iterable[str], default: float = 1.0) -> Strengths:
    """The strength for each layer of a model with these ``layers``, from a number, a mapping by block, or None (1).

    A mapping has ``"down"``, ``"mid"``, ``"up"``; for ``down`` and ``up`` a number or a mapping by ``"block_0"``,
    ``"block_1"``, …, for each of which a number or a list with one for each of its transformers. What is left out is
    ``default``.
    Raises ``InputError`` for blocks that the model does not have and lists of another length.
    """
    if given is None:
        return lambda layer: 1.0
    if not isinstance(given, Mapping):
        amount = checked("An adapter's weight", given)
        return lambda layer: amount
    transformers = _transformers(layers)
    if wrong := [key for key in given if key not in ("down", "mid", "up")]:
        raise InputError(f"An adapter's weights by block are for 'down', 'mid' and 'up', not {wrong[0]!r}.")
    middle = _listed(given.get("mid", default), 1, "mid")[0]
    amounts: dict[tuple[str, int], list[float]] = {}
    for side in ("down", "up"):
        blocks = {block: count for (where, block), count in transformers.items() if where == side}
        if side in given and not blocks:
            raise InputError(f"The model has no {side} blocks, and weights are given for them.")
        entry = given.get(side, default)
        by_block = entry if isinstance(entry, Mapping) else {f"block_{block}": entry for block in blocks}
        for name, amount in by_block.items():
            number = int(name.removeprefix("block_")) if re.fullmatch(r"block_\d+", str(name)) else -1
            if number not in blocks:
                have = ", ".join(f"block_{block}" for block in blocks)
                raise InputError(f"Weights are given for {side}.{name}; the model has {have} there.")
            if isinstance(entry, Mapping) and not blocks[number]:
                raise InputError(f"Weights are given for {side}.{name}, which has no transformers.")
            amounts[side, number] = _listed(amount, blocks[number] or 1, f"{side}.{name}")

    def amount_for(layer: str) -> float:
        if layer.startswith("mid_block."):
            return middle
        match = _PLACE.match(layer)
        if match is None:
            return default
        values = amounts.get((match["side"], int(match["block"])), [default])
        part = int(match["part"])
        return values[part] if part < len(values) else values[0] if len(set(values)) == 1 else default

    return amount_for


def _transformers(layers: Iterable[str]) -> dict[tuple[str, int], int]:
    """(side, block) -> how many transformers it has."""
    found: dict[tuple[str, int], set[int]] = {}
    for layer in layers:
        if match := _PLACE.match(layer):
            parts = found.setdefault((match["side"], int(match["block"])), set())
            if match["kind"] == "attentions":
                parts.add(int(match["part"]))
    return {place: len(parts) for place, parts in sorted(found.items())}


def _listed(given: Any, count: int, where: str) -> list[float]:
    values = list(given) if isinstance(given, list | tuple) else [given]
    if len(values) not in (1, count):
        raise InputError(f"There are {len(values)} weights for {where}, which has {count} transformers.")
    numbers = [checked(f"The weight for {where}", value) for value in values]
    return numbers * count if len(numbers) == 1 else numbers
