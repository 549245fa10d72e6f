"""Prompts for judging a model: sentences of the grammar with the attributes that the picture must then show."""

from __future__ import annotations

import random
from dataclasses import dataclass

from calotype.core.errors import InputError
from calotype.pocket.captions import FLOOR_PHRASES, NOUNS, RELATION_PHRASES, SKY_PHRASES, with_article
from calotype.pocket.scene import pairs_of
from calotype.pocket.vocabulary import COLORS, FLOORS, SHAPES, SKIES


@dataclass(frozen=True)
class Prompt:
    """A sentence and what a right picture of it shows; names as in ``vocabulary``."""

    text: str
    shape: str
    """of the main object, which the sentence names first"""
    color: str
    floor: str
    sky: str
    second_shape: str | None = None
    second_color: str | None = None
    relation: str | None = None
    """``left`` or ``right``: where the main object is, seen from the second"""


def prompts(split: str, n: int, seed: int = 0, pairs_share: float = 0.5) -> list[Prompt]:
    """``n`` prompts whose main objects come from ``split`` (in ``heldout``: pairs never trained on), in turn.

    Every second object's pair is one of training, and differs from the main one in shape and in colour.

    Raises:
        InputError: ``n`` is not positive, the split is unknown or ``pairs_share`` (the share of prompts with two
            objects) is not in [0, 1].
    """
    if n < 1:
        raise InputError(f"The number of prompts must be at least 1, not {n}.")
    if not 0.0 <= pairs_share <= 1.0:
        raise InputError(f"pairs_share must be in [0, 1], not {pairs_share}.")
    rng = random.Random(seed)
    main, other = (pairs.tolist() for pairs in pairs_of(split))
    rng.shuffle(main)
    found = []
    for i in range(n):
        shape, color = (names[j] for names, j in zip((SHAPES, COLORS), main[i % len(main)], strict=True))
        floor, sky = rng.choice(FLOORS), rng.choice(SKIES)
        place = f"{rng.choice(FLOOR_PHRASES[floor])} {rng.choice(SKY_PHRASES[sky])}"
        subject = with_article(f"{color} {rng.choice(NOUNS[shape])}")
        if rng.random() >= pairs_share:
            found.append(Prompt(f"{subject} {place}", shape, color, floor, sky))
            continue
        unlike = [(SHAPES[s], COLORS[c]) for s, c in other if SHAPES[s] != shape and COLORS[c] != color]
        second_shape, second_color = rng.choice(unlike)
        relation = rng.choice(("left", "right"))
        second = with_article(f"{second_color} {rng.choice(NOUNS[second_shape])}")
        text = f"{subject} {rng.choice(RELATION_PHRASES[relation])} {second} {place}"
        found.append(Prompt(text, shape, color, floor, sky, second_shape, second_color, relation))
    return found
