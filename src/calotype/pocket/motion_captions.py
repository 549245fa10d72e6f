"""What happens in a moving scene, in words: the grammar of ``captions`` with verbs."""

from __future__ import annotations

import random

from calotype.pocket import captions
from calotype.pocket.motion import MotionRecord, MovingScenes
from calotype.pocket.scene import SceneBatch, SceneRecord

_Verbs = tuple[tuple[str, str, tuple[str, ...]], ...]
"""Participle, finite form, and what may follow."""


def _across(side: str) -> tuple[str, ...]:
    other = "right" if side == "left" else "left"
    return (f"to the {side}", f"to the {side}", side, f"from {other} to {side}")


_AWAY = ("away", "away", "away from the camera", "into the distance")
_NEARER = ("closer", "towards the camera", "towards the viewer")


def _with(verbs: tuple[tuple[str, str], ...], after: tuple[str, ...]) -> _Verbs:
    return tuple((participle, finite, after) for participle, finite in verbs)


_ROLL = (("rolling", "rolls"), ("rolling", "rolls"), ("moving", "moves"))
_SLIDE = (("sliding", "slides"), ("moving", "moves"), ("gliding", "glides"))
VERBS: dict[str, tuple[_Verbs, _Verbs]] = {
    "left": (_with(_SLIDE, _across("left")), _with(_ROLL, _across("left"))),
    "right": (_with(_SLIDE, _across("right")), _with(_ROLL, _across("right"))),
    "away": (_with(_SLIDE, _AWAY), _with(_ROLL, _AWAY)),
    "closer": (
        (*_with(_SLIDE, _NEARER), ("coming", "comes", ("closer",))),
        (*_with(_ROLL, _NEARER), ("coming", "comes", ("closer",))),
    ),
}
"""Motion -> verbs of what slides and of what rolls."""
_FALL: _Verbs = (
    ("falling", "falls", ("", "down", "from the sky", "to the ground")),
    ("falling", "falls", ("", "down")),
    ("dropping", "drops", ("to the ground", "down")),
)
_RISE: _Verbs = (
    ("rising", "rises", ("", "up", "into the air")),
    ("floating", "floats", ("up", "into the air")),
)
_JUMP: _Verbs = (
    ("jumping", "jumps", ("", "up and down")),
    ("bouncing", "bounces", ("", "up and down")),
    ("hopping", "hops", ("",)),
)
_SPIN: _Verbs = (
    ("spinning", "spins", ("", "around")),
    ("rotating", "rotates", ("",)),
    ("turning", "turns", ("around",)),
)
_CIRCLE: _Verbs = (
    ("moving", "moves", ("in a circle",)),
    ("going", "goes", ("around in a circle", "in a circle")),
    ("circling", "circles", ("",)),
)
_STILL: _Verbs = (
    ("standing", "stands", ("still",)),
    ("not moving", "does not move", ("",)),
)
VERBS |= {
    name: (verbs, verbs)
    for name, verbs in (
        ("fall", _FALL), ("rise", _RISE), ("jump", _JUMP), ("spin", _SPIN), ("circle", _CIRCLE), ("still", _STILL),
    )
}  # fmt: skip
ORBIT = (("orbiting", "orbits"), ("circling around", "circles around"), ("moving around", "moves around"))
"""For a circle with something in its middle."""
CAMERA = {
    "camera_left": (("turning", "turns", _across("left")[:3]), ("panning", "pans", _across("left")[:3])),
    "camera_right": (("turning", "turns", _across("right")[:3]), ("panning", "pans", _across("right")[:3])),
    "camera_in": (("zooming", "zooms", ("in",)), ("moving", "moves", ("closer",))),
    "camera_out": (("zooming", "zooms", ("out",)), ("moving", "moves", ("away", "back"))),
}  # fmt: skip
ADVERBS = {"slow": ("slowly",), "normal": ("",), "fast": ("fast", "quickly")}
PREFIXES = ("a video of", "a clip of", "an animation of", "a film of")


def _phrase(verbs: _Verbs, speed: str, rng: random.Random, finite: bool) -> str:
    participle, verb, after = rng.choice(verbs)
    adverb = rng.choice(ADVERBS[speed]) if rng.random() < 0.5 else ""
    parts = [verb if finite else participle, adverb, rng.choice(after)]
    if rng.random() < 0.4:  # "rolling to the right fast"
        parts[1:] = parts[:0:-1]
    return " ".join(part for part in parts if part)


def motion_phrase(motion: MotionRecord, rng: random.Random, finite: bool = False) -> str:
    """What the main object does: ``rolling slowly to the left``, or with ``finite`` ``rolls slowly to the left``."""
    return _phrase(
        VERBS[motion.name][motion.rolls], "normal" if motion.name == "still" else motion.speed, rng, finite
    )


def camera_phrase(motion: MotionRecord, rng: random.Random) -> str:
    """What the camera does: ``the camera turns left``."""
    if rng.random() < 0.2:
        return "camera " + _phrase(CAMERA[motion.name], motion.speed, rng, finite=False)
    return "the camera " + _phrase(CAMERA[motion.name], motion.speed, rng, finite=True)


def motion_caption(
    scene: SceneRecord, motion: MotionRecord, rng: random.Random, detail: float | None = None
) -> str:
    """One description of what is seen and what happens; ``detail`` as for ``captions.caption``."""
    if detail is None:
        detail = rng.random()
    if motion.name.startswith("camera"):
        told = captions.caption(scene, rng, detail)
        what = camera_phrase(motion, rng)
        return f"{what}, {told}" if rng.random() < 0.15 else f"{told}, {what}"
    if motion.name == "still" and rng.random() < 0.5:  # nothing is said of motion, and there is none
        return captions.caption(scene, rng, detail)
    odds = 0.30 + 0.68 * detail
    main, *others = scene.objects
    words = captions.describe(main, rng, detail)
    floor = rng.choice(captions.FLOOR_PHRASES[scene.floor]) if rng.random() < odds else ""
    sky = rng.choice(captions.SKY_PHRASES[scene.sky]) if rng.random() < odds else ""
    style = rng.random()
    if style < 0.06:  # "red ball, rolling right, grass"
        parts = [words, motion_phrase(motion, rng)]
        parts += [rng.choice(captions.FLOOR_TAGS[scene.floor])] if floor else []
        return ", ".join(parts + ([rng.choice(captions.SKY_TAGS[scene.sky])] if sky else []))
    subject = words if style < 0.12 else captions.with_article(words)
    if 0.12 < style < 0.30:
        subject = f"{rng.choice(PREFIXES)} {subject}"
    finite = style > 0.80
    doing = motion_phrase(motion, rng, finite)
    if others and rng.random() < 0.35 + 0.6 * detail:
        other = captions.with_article(captions.describe(others[0], rng, 0.6 * detail))
        if motion.name == "circle":
            doing = f"{rng.choice(ORBIT)[finite]} {other}"
        else:
            between = ("past", "in front of") if motion.name in ("left", "right") else ("next to", "near")
            doing = f"{doing} {rng.choice((*between, 'and'))} {other}"
    if floor and not finite and not others and rng.random() < 0.15:  # "a ball on grass rolling to the right"
        subject, floor = f"{subject} {floor}", ""
    return " ".join(part for part in (subject, doing, floor, sky) if part)


def motion_captions(moving: MovingScenes, seed: int, per_scene: int = 1) -> list[list[str]]:
    """``per_scene`` captions of every moving scene, repeatable from ``seed``."""
    rng = random.Random(seed)
    rows = zip(moving.scene.records(), moving.records(), strict=True)
    return [[motion_caption(scene, motion, rng) for _ in range(per_scene)] for scene, motion in rows]


def moments(moving: MovingScenes, seed: int) -> tuple[SceneBatch, list[str]]:
    """One picture of each clip, of a random moment, with a caption of the whole: for models of pictures."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    time = torch.rand(len(moving), generator=generator).to(moving.motion.device)
    return moving.at(time), [row[0] for row in motion_captions(moving, seed)]


def vocabulary() -> list[str]:
    """The words that these captions add to those of ``captions.vocabulary``, sorted."""
    verbs = [row for pair in VERBS.values() for table in pair for row in table]
    verbs += [row for table in CAMERA.values() for row in table]
    texts = [text for participle, finite, after in verbs for text in (participle, finite, *after)]
    texts += [text for pair in ORBIT for text in pair] + [text for row in ADVERBS.values() for text in row]
    texts += [*PREFIXES, "the camera past in front of next to near and"]
    return sorted({word for text in texts for word in text.split()} - set(captions.vocabulary()))
