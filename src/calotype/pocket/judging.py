"""Does a picture show what its prompt asked for? Readings of the classifier against the prompts' attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from calotype.core.errors import InputError
from calotype.pocket.classifier import Reading
from calotype.pocket.prompts import Prompt
from calotype.pocket.vocabulary import COLORS, FLOORS, SHAPES, SKIES, index_of


@dataclass(frozen=True)
class Verdict:
    """What is right about one picture."""

    color: bool
    """of the main object"""
    shape: bool
    """of the main object"""
    floor: bool
    sky: bool
    relation: bool | None
    """left/right; None where the prompt names one object only"""


def judge(prompts: Sequence[Prompt], reading: Reading) -> list[Verdict]:
    """Compare what was asked for with what was read.

    The named objects are looked for among those found: the assignment in which the asked shapes and colours are most
    probable counts. A relation is right if both objects were found, each by its shape or its colour at least, and
    stand in the asked order.

    Raises:
        InputError: there are not as many prompts as pictures read.
    """
    if len(prompts) != len(reading.count):
        raise InputError(f"There are {len(prompts)} prompts for {len(reading.count)} pictures.")
    return [_verdict(prompt, reading, i) for i, prompt in enumerate(prompts)]


def _verdict(prompt: Prompt, reading: Reading, i: int) -> Verdict:
    wanted = [(index_of(SHAPES, prompt.shape, "shape"), index_of(COLORS, prompt.color, "color"))]
    if prompt.second_shape is not None and prompt.second_color is not None:
        wanted.append(
            (index_of(SHAPES, prompt.second_shape, "shape"), index_of(COLORS, prompt.second_color, "color"))
        )
    found = int(reading.count[i])

    def fit(slots: tuple[int, ...]) -> float:
        return sum(
            float(reading.shape_probability[i, slot, shape] + reading.color_probability[i, slot, color])
            for slot, (shape, color) in zip(slots, wanted, strict=False)
        )

    slots = max(permutations(range(found), min(len(wanted), found)), key=fit)
    right = [
        (int(reading.shape[i, slot]) == shape, int(reading.color[i, slot]) == color)
        for slot, (shape, color) in zip(slots, wanted, strict=False)
    ]
    relation = None
    if prompt.relation is not None:
        in_order = len(slots) == 2 and (slots[0] < slots[1]) == (prompt.relation == "left")
        relation = in_order and all(shape or color for shape, color in right)
    return Verdict(
        color=right[0][1],
        shape=right[0][0],
        floor=int(reading.floor[i]) == index_of(FLOORS, prompt.floor, "floor"),
        sky=int(reading.sky[i]) == index_of(SKIES, prompt.sky, "sky"),
        relation=relation,
    )


def shares(verdicts: Sequence[Verdict]) -> dict[str, tuple[int, int]]:
    """Attribute -> (pictures in which it is right, pictures in which it was asked for)."""
    table = {}
    for name in ("color", "shape", "floor", "sky", "relation"):
        asked = [value for verdict in verdicts if (value := getattr(verdict, name)) is not None]
        table[name] = (sum(asked), len(asked))
    return table
