"""A grammar that puts a scene into words: what it says is true of the picture, what it leaves out is free."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from calotype.pocket.scene import ObjectRecord, SceneBatch, SceneRecord

NOUNS = {
    "sphere": ("sphere", "ball", "orb"),
    "cube": ("cube", "box", "block"),
    "cylinder": ("cylinder", "drum"),
    "cone": ("cone",),
    "torus": ("torus", "donut", "ring"),
    "pyramid": ("pyramid",),
    "capsule": ("capsule", "pill"),
    "octahedron": ("octahedron", "gem", "diamond"),
    "star": ("star",),
}
EXTRA_NOUNS = {"heart": ("heart",)}
"""Of the shapes that no bundled model knows; words that its tokenizer was not made for."""
_PLURALS = {"box": "boxes", "torus": "tori", "octahedron": "octahedra"}
COLOR_WORDS = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "turquoise": ("turquoise", "teal", "cyan"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
    "black": ("black",),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "big": ("big", "large", "huge"),
}
MATERIAL_WORDS = {
    "matte": ("matte", "dull", "rubber"),
    "shiny": ("shiny", "glossy", "polished"),
    "metal": ("metal", "metallic"),
}
FLOOR_PHRASES = {
    "wood": ("on a wooden floor", "on wood", "on wooden planks", "on the wooden floor"),
    "grass": ("on grass", "on a lawn", "on green grass", "in a meadow", "on the grass"),
    "tiles": ("on tiles", "on a tiled floor", "on a checkered floor", "on checkered tiles"),
    "sand": ("on sand", "on a beach", "on the sand", "in the desert", "on sandy ground"),
    "snow": ("on snow", "in the snow", "on a snowy field", "on snowy ground"),
}
FLOOR_TAGS = {
    "wood": ("wood", "wooden floor"),
    "grass": ("grass", "lawn"),
    "tiles": ("tiles", "checkered floor"),
    "sand": ("sand", "beach"),
    "snow": ("snow", "snowy ground"),
}
SKY_PHRASES = {
    "day": ("by day", "in daylight", "on a sunny day", "under a blue sky", "under a clear sky"),
    "sunset": ("at sunset", "at dusk", "in the evening sun", "under an orange sky", "in warm evening light"),
    "night": ("at night", "under the stars", "in moonlight", "under a night sky", "under the moon"),
    "overcast": (
        "under a cloudy sky",
        "on a cloudy day",
        "under an overcast sky",
        "under gray clouds",
        "on a grey day",
    ),
}
SKY_TAGS = {
    "day": ("day", "daylight", "sunny day", "blue sky"),
    "sunset": ("sunset", "dusk", "evening"),
    "night": ("night", "moonlight", "starry night"),
    "overcast": ("cloudy", "overcast", "gray sky"),
}
RELATION_PHRASES = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "front": ("in front of",),
    "behind": ("behind",),
    "near": ("next to", "beside", "near"),
    "on": ("on top of", "standing on", "on"),
    "under": ("under", "below"),
}
PREFIXES = (
    "a photo of", "a picture of", "an image of", "a render of", "a 3d render of", "a painting-like render of",
    "a scene with", "there is",
)  # fmt: skip
NUMBERS = {1: ("one", "a single"), 2: ("two", "2"), 3: ("three", "3")}
_FUNCTION_WORDS = "a an and with it object objects thing things shapes something pair of lone"

LEFT_RIGHT_MARGIN = 0.22
"""How far apart on the picture (of its half width) two objects are before one is called left of the other."""
FRONT_BEHIND_MARGIN = 0.9
NEAR_DISTANCE = 2.5


def plural(noun: str) -> str:
    return _PLURALS.get(noun, noun + "s")


def with_article(phrase: str) -> str:
    """``a`` or ``an`` before a phrase of the grammar, by its first letter."""
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def relations(a: int, b: int, scene: SceneRecord) -> list[str]:
    """Every relation (a key of :data:`RELATION_PHRASES`) in which object ``a`` clearly stands to object ``b``."""
    first, second = scene.objects[a], scene.objects[b]
    if first.support == b:
        return ["on"]
    if second.support == a:
        return ["under"]
    found = []
    across = first.screen_x - second.screen_x
    if abs(across) > LEFT_RIGHT_MARGIN:
        found.append("left" if across < 0 else "right")
    nearer = first.position[2] - second.position[2]
    if abs(nearer) > FRONT_BEHIND_MARGIN:
        found.append("front" if nearer > 0 else "behind")
    if math.dist(first.position, second.position) < NEAR_DISTANCE:
        found.append("near")
    return found


_RELATION_WEIGHTS = {
    "left": 6.0,
    "right": 6.0,
    "front": 2.0,
    "behind": 2.0,
    "near": 1.0,
    "on": 1.0,
    "under": 1.0,
}


def _relation(a: int, b: int, scene: SceneRecord, rng: random.Random) -> str | None:
    found = relations(a, b, scene)
    if not found:
        return None
    return rng.choices(found, [_RELATION_WEIGHTS[name] for name in found])[0]


def _words(thing: ObjectRecord, rng: random.Random, detail: float, many: bool = False) -> str:
    """Adjectives and noun, without article."""
    noun = rng.choice(NOUNS.get(thing.shape) or EXTRA_NOUNS[thing.shape])
    color = rng.choice(COLOR_WORDS[thing.color])
    share = rng.random()
    if share > 0.97:
        return plural(noun) if many else noun
    if share > 0.95:
        noun = "object" if rng.random() < 0.5 else "thing"
    adjectives = []
    odds = 0.08 + 0.62 * detail
    if not many and rng.random() < (odds if thing.size != "medium" else 0.3 * odds):
        adjectives.append(rng.choice(SIZE_WORDS[thing.size]))
    if not many and rng.random() < odds:
        adjectives.append(rng.choice(MATERIAL_WORDS[thing.material]))
    if len(adjectives) == 2 and rng.random() < 0.15:
        adjectives.reverse()
    adjectives.insert(len(adjectives) if rng.random() < 0.92 else 0, color)
    return " ".join((*adjectives, plural(noun) if many else noun))


def describe(thing: ObjectRecord, rng: random.Random, detail: float) -> str:
    """An object's adjectives and noun, without article: ``big shiny red ball``."""
    return _words(thing, rng, detail)


def _object(thing: ObjectRecord, rng: random.Random, detail: float) -> str:
    return with_article(_words(thing, rng, detail))


def _alike(scene: SceneRecord) -> bool:
    first, second = scene.objects[:2]
    return first.shape == second.shape and first.color == second.color


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _subject(scene: SceneRecord, rng: random.Random, detail: float) -> str:
    """The objects of the scene, or some of them."""
    count = len(scene.objects)
    share = rng.random()
    if share < 0.04:
        number = rng.choice(NUMBERS[count])
        return (
            f"{number} {rng.choice(('object', 'thing') if count == 1 else ('objects', 'things', 'shapes'))}"
        )
    if count == 1:
        if share < 0.16:
            return f"{rng.choice((*NUMBERS[1], 'a lone'))} {_words(scene.objects[0], rng, detail)}"
        if share < 0.19:
            return f"something {rng.choice(COLOR_WORDS[scene.objects[0].color])}"
        return _object(scene.objects[0], rng, detail)
    if _alike(scene) and share < 0.60:
        two = "a pair of" if rng.random() < 0.2 else rng.choice(NUMBERS[2])
        text = f"{two} {_words(scene.objects[0], rng, detail, many=True)}"
        if count == 3 and rng.random() < 0.3 + 0.6 * detail:
            text += f" and {_object(scene.objects[2], rng, detail)}"
        return text
    if rng.random() < 0.22 * (1.0 - detail):  # only the main object is named
        return _object(scene.objects[0], rng, detail)
    named = range(count) if count == 2 or rng.random() < 0.25 + 0.7 * detail else range(2)
    a, b = (0, 1) if rng.random() < 0.7 else (1, 0)
    relation = _relation(a, b, scene, rng)
    texts = {i: _object(scene.objects[i], rng, detail) for i in named}
    if relation is None or rng.random() < 0.15:
        return _joined([texts[a], texts[b], *(texts[i] for i in named if i > 1)])
    related = f"{texts[a]} {rng.choice(RELATION_PHRASES[relation])} {texts[b]}"
    if len(named) < 3:
        return related
    third = _relation(2, a, scene, rng)
    if third in ("left", "right", "front", "behind") and rng.random() < 0.6:
        return f"{related}, with {texts[2]} {rng.choice(RELATION_PHRASES[third])} it"
    return f"{related}{rng.choice((', with', ' and', ', and'))} {texts[2]}"


def _tags(scene: SceneRecord, rng: random.Random, detail: float) -> str:
    """``red ball, blue cube, grass, sunset``"""
    parts = [_words(thing, rng, detail) for thing in scene.objects]
    if rng.random() < 0.4 + 0.6 * detail:
        parts.append(rng.choice(FLOOR_TAGS[scene.floor]))
    if rng.random() < 0.4 + 0.6 * detail:
        parts.append(rng.choice(SKY_TAGS[scene.sky]))
    return ", ".join(parts)


def caption(scene: SceneRecord, rng: random.Random, detail: float | None = None) -> str:
    """One description of ``scene``; ``detail`` from 0 (terse) to 1 (everything), drawn when left out."""
    if detail is None:
        detail = rng.random()
    style = rng.random()
    if style < 0.10:
        return _tags(scene, rng, detail)
    odds = 0.30 + 0.68 * detail
    floor = rng.choice(FLOOR_PHRASES[scene.floor]) if rng.random() < odds else ""
    sky = rng.choice(SKY_PHRASES[scene.sky]) if rng.random() < odds else ""
    subject = _subject(scene, rng, detail)
    if style < 0.20:  # "red ball on grass"
        subject = subject.removeprefix("an ").removeprefix("a ")
    elif style < 0.38:
        subject = f"{rng.choice(PREFIXES)} {subject}"
    if sky and style > 0.92:
        return f"{sky}, {subject} {floor}".strip()
    if floor and style > 0.87:
        return f"{floor}, {subject} {sky}".strip()
    comma = ", " if rng.random() < 0.15 else " "
    return comma.join(part for part in (f"{subject} {floor}".strip(), sky) if part)


def captions(scenes: SceneBatch, seed: int, per_scene: int = 1) -> list[list[str]]:
    """``per_scene`` captions of every scene, repeatable from ``seed``."""
    rng = random.Random(seed)
    return [[caption(record, rng) for _ in range(per_scene)] for record in scenes.records()]


def _split(texts: Sequence[str]) -> set[str]:
    return {word for text in texts for word in text.replace(",", " ").split()}


def vocabulary() -> list[str]:
    """Every word that a caption can contain, sorted."""
    tables = (
        NOUNS, COLOR_WORDS, SIZE_WORDS, MATERIAL_WORDS, FLOOR_PHRASES, FLOOR_TAGS, SKY_PHRASES, SKY_TAGS,
        RELATION_PHRASES, NUMBERS,
    )  # fmt: skip
    words = _split(PREFIXES) | _split([_FUNCTION_WORDS])
    for table in tables:
        for phrases in table.values():
            words |= _split(phrases)
    words |= {plural(noun) for nouns in NOUNS.values() for noun in nouns} | {"objects", "things"}
    return sorted(words)
