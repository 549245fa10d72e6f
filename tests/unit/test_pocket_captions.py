"""The grammar: every word known, every statement true."""

from __future__ import annotations

import random
import re

import pytest
import torch

from calotype.core.errors import InputError
from calotype.pocket import captions as grammar
from calotype.pocket.captions import caption, captions, plural, relations, vocabulary
from calotype.pocket.prompts import prompts
from calotype.pocket.scene import ObjectSpec, make_scene, sample_scenes
from calotype.pocket.vocabulary import HELD_OUT


@pytest.fixture(scope="module")
def described():
    scenes = sample_scenes(600, torch.Generator().manual_seed(0), "all")
    return [
        (record, text)
        for record, texts in zip(scenes.records(), captions(scenes, 1, 8), strict=True)
        for text in texts
    ]


def words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def test_vocabulary_holds_every_word(described):
    known = set(vocabulary())
    used = {word for _, text in described for word in words(text)}
    assert used <= known
    assert len(used) > 0.95 * len(known)
    assert len(known) < 250


def test_captions_are_true(described):
    """Each mentioned noun, colour, size, material, floor and sky is one that the scene has."""
    colors = {w: c for c, ws in grammar.COLOR_WORDS.items() for w in ws}
    nouns = {n: s for s, ns in grammar.NOUNS.items() for noun in ns for n in (noun, plural(noun))}
    sizes = {w: s for s, ws in grammar.SIZE_WORDS.items() for w in ws}
    materials = {w: m for m, ws in grammar.MATERIAL_WORDS.items() for w in ws}
    places = [
        p for table in (grammar.FLOOR_PHRASES, grammar.SKY_PHRASES) for ps in table.values() for p in ps
    ]
    for record, text in described:
        rest = text
        for phrase in sorted(places, key=len, reverse=True):
            rest = re.sub(rf"(^|[ ,]){re.escape(phrase)}($|[ ,])", "  ", rest)
        tags = [t for table in (grammar.FLOOR_TAGS, grammar.SKY_TAGS) for ts in table.values() for t in ts]
        for phrase in sorted(tags, key=len, reverse=True):
            rest = re.sub(rf", {re.escape(phrase)}($|,)", r"\1", rest)
        for word in words(rest):
            if word in colors:
                assert colors[word] in {o.color for o in record.objects}, text
            if word in nouns:
                assert nouns[word] in {o.shape for o in record.objects}, text
            if word in sizes:
                assert sizes[word] in {o.size for o in record.objects}, text
            if word in materials:
                assert materials[word] in {o.material for o in record.objects}, text
        for table, value in ((grammar.FLOOR_PHRASES, record.floor), (grammar.SKY_PHRASES, record.sky)):
            for name, phrases in table.items():
                if name != value:
                    assert not any(text.endswith(" " + p) for p in phrases), text


def test_most_captions_name_the_main_objects_colour_and_shape(described):
    named = 0
    for record, text in described:
        main, found = record.objects[0], set(words(text))
        nouns = {n for noun in grammar.NOUNS[main.shape] for n in (noun, plural(noun))}
        named += bool(found & nouns) and bool(found & set(grammar.COLOR_WORDS[main.color]))
    assert named > 0.75 * len(described)


def test_relations_are_those_of_the_picture():
    record = make_scene(
        [
            ObjectSpec("sphere", "red", position=(-1.2, 1.2)),
            ObjectSpec("cube", "blue", position=(1.2, -0.5)),
            ObjectSpec("cone", "green", "small", on=1),
        ]
    ).records()[0]
    assert relations(0, 1, record) == ["left", "front"]
    assert relations(1, 0, record) == ["right", "behind"]
    assert relations(2, 1, record) == ["on"]
    assert relations(1, 2, record) == ["under"]


def test_full_detail_mentions_everything():
    scene = make_scene([ObjectSpec("torus", "purple", "big", "metal")], floor="snow", sky="night").records()[
        0
    ]
    rng = random.Random(0)
    texts = [caption(scene, rng, 1.0) for _ in range(300)]
    full = [
        t for t in texts if set(words(t)) & {"metal", "metallic"} and set(words(t)) & {"big", "large", "huge"}
    ]
    assert len(full) > 100
    assert any("snow" in t and ("night" in t or "moon" in t or "stars" in t) for t in full)
    assert any(t.startswith("a ") for t in texts) and any(t.startswith("one ") for t in texts)


def test_two_alike_are_counted():
    scene = make_scene([ObjectSpec("cube", "red"), ObjectSpec("cube", "red")]).records()[0]
    rng = random.Random(0)
    assert any("two red boxes" in caption(scene, rng) for _ in range(400))


def test_articles():
    assert grammar.with_article("orange ball") == "an orange ball"
    assert grammar.with_article("red ball") == "a red ball"
    assert grammar.with_article("octahedron") == "an octahedron"


def test_captions_repeat_from_a_seed():
    scenes = sample_scenes(20, torch.Generator().manual_seed(3))
    assert captions(scenes, 7, 2) == captions(scenes, 7, 2)
    assert captions(scenes, 7, 2) != captions(scenes, 8, 2)


def test_prompts_of_held_out_pairs():
    asked = prompts("heldout", 200, seed=3)
    assert {(p.shape, p.color) for p in asked} == HELD_OUT
    known = set(vocabulary())
    assert all(set(words(p.text)) <= known for p in asked)
    pairs = [p for p in asked if p.relation]
    assert 60 < len(pairs) < 140
    for p in pairs:
        assert (p.second_shape, p.second_color) not in HELD_OUT
        assert p.second_shape != p.shape and p.second_color != p.color
        assert p.relation in p.text
    assert asked == prompts("heldout", 200, seed=3)
    assert not {(p.shape, p.color) for p in prompts("train", 300)} & HELD_OUT


def test_prompts_refuse():
    with pytest.raises(InputError, match="at least 1"):
        prompts("train", 0)
    with pytest.raises(InputError, match="no split"):
        prompts("validation", 5)
    with pytest.raises(InputError, match="pairs_share"):
        prompts("train", 5, pairs_share=1.5)
