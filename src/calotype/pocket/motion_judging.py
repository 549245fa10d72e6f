"""Does a clip show the motion that its prompt asked for? Prompts of held-out combinations, and what is read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.pocket.captions import COLOR_WORDS, FLOOR_PHRASES, NOUNS, SKY_PHRASES, with_article
from calotype.pocket.classifier import Reading
from calotype.pocket.motion import MOTIONS, MovingScenes, sample_moving_scenes
from calotype.pocket.motion_captions import camera_phrase, motion_phrase
from calotype.pocket.vocabulary import COLORS, SHAPES, index_of

JUDGED = {
    "left": 0.3, "right": 0.3, "away": 0.08, "closer": 0.08, "fall": 0.06, "rise": 0.06, "camera_left": 0.06,
    "camera_right": 0.06,
}  # fmt: skip
"""Motions that have a direction on the picture, and their shares of the prompts."""
_TOWARDS = {
    "left": (-1.0, 0.0), "right": (1.0, 0.0), "away": (0.0, 1.0), "closer": (0.0, -1.0), "fall": (0.0, -1.0),
    "rise": (0.0, 1.0), "camera_left": (1.0, 0.0), "camera_right": (-1.0, 0.0),
}  # fmt: skip
"""Where the main object goes on the picture (x to the right, y up)."""
_LEAST = {"away": 0.04, "closer": 0.04}
_LEAST_ELSE = 0.15
"""Of the half picture: a shorter way is no motion."""


@dataclass(frozen=True)
class MotionPrompt:
    """A sentence and what a right clip of it shows."""

    text: str
    motion: str
    shape: str
    color: str


def motion_prompts(n: int, seed: int = 0) -> tuple[list[MotionPrompt], MovingScenes]:
    """``n`` prompts of held-out combinations with one object, and a moving scene that each is true of.

    Raises ``InputError`` if ``n`` is not positive.
    """
    if n < 1:
        raise InputError(f"The number of prompts must be at least 1, not {n}.")
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = sample_moving_scenes(40 * n + 400, generator, "heldout")
    alone = pool.scene.present.sum(1) == 1
    left = {
        name: (alone & (pool.motion == index_of(MOTIONS, name, "motion"))).nonzero()[:, 0].tolist()
        for name in JUDGED
    }
    names = rng.choices(list(JUDGED), list(JUDGED.values()), k=n)
    chosen = pool[torch.tensor([left[name].pop() for name in names])]
    found = []
    for scene, motion in zip(chosen.scene.records(), chosen.records(), strict=True):
        main = scene.objects[0]
        subject = with_article(f"{rng.choice(COLOR_WORDS[main.color])} {rng.choice(NOUNS[main.shape])}")
        place = f"{rng.choice(FLOOR_PHRASES[scene.floor])} {rng.choice(SKY_PHRASES[scene.sky])}"
        if motion.name.startswith("camera"):
            text = f"{subject} {place}, {camera_phrase(motion, rng)}"
        else:
            text = f"{subject} {motion_phrase(motion, rng)} {place}"
        found.append(MotionPrompt(text, motion.name, main.shape, main.color))
    return found, chosen


@dataclass(frozen=True)
class MotionVerdict:
    """What is right about one clip."""

    direction: bool
    color: bool
    """the main object has the asked colour in nine of ten frames"""
    way: tuple[float, float]
    """how far the main object went on the picture, of its half width, right and up"""


def judge_motion(prompts: Sequence[MotionPrompt], reading: Reading, frames: int) -> list[MotionVerdict]:
    """Compare clips with their prompts; ``reading`` is of all frames, those of a clip together.

    In each frame the object counts that is likeliest the asked one. Its way is from its mean place in the first fifth
    of the frames to that in the last.

    Raises ``InputError`` if there are not ``frames`` readings for each prompt.
    """
    if len(prompts) * frames != len(reading.count):
        raise InputError(
            f"There are {len(reading.count)} readings for {len(prompts)} clips of {frames} frames."
        )
    return [
        _verdict(prompt, reading, slice(i * frames, (i + 1) * frames)) for i, prompt in enumerate(prompts)
    ]


def _verdict(prompt: MotionPrompt, reading: Reading, clip: slice) -> MotionVerdict:
    shape, color = index_of(SHAPES, prompt.shape, "shape"), index_of(COLORS, prompt.color, "color")
    fit = reading.shape_probability[clip, :, shape] + reading.color_probability[clip, :, color]
    slot = fit.argmax(1)
    row = torch.arange(len(slot), device=slot.device)
    center = reading.center[clip][row, slot]
    count = max(1, round(len(center) / 5))
    way = _middle(center[-count:]) - _middle(center[:count])
    x, y = way.tolist()
    right, up = _TOWARDS[prompt.motion]
    along, across = x * right + y * up, abs(x * up) + abs(y * right)
    least = _LEAST.get(prompt.motion, _LEAST_ELSE)
    asked = (reading.color[clip][row, slot] == color).float().mean().item()
    return MotionVerdict(direction=along > least and along > across, color=asked >= 0.9, way=(x, y))


def _middle(points: Tensor) -> Tensor:
    return points.median(0).values
