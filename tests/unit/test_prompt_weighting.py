"""The syntaxes of weighted prompts: what they mean, and laws that hold for any text."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest

from calotype.core.errors import InputError
from calotype.families.prompts.weighting import BREAK, Fragment, a1111, compel

WORDS = ["a", "red", "ball", "of", "c4", "naïve", "blue-green", "1.5", "ünder", "狐", "x,", "y."]


def rounded(fragments: tuple[Fragment, ...]) -> list[tuple[str, float]]:
    return [(f.text, round(f.weight, 6)) for f in fragments]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("a red ball", [("a red ball", 1.0)]),
        ("a (red) ball", [("a ", 1.0), ("red", 1.1), (" ball", 1.0)]),
        ("a ((red)) ball", [("a ", 1.0), ("red", 1.21), (" ball", 1.0)]),
        ("a [red] ball", [("a ", 1.0), ("red", 0.909091), (" ball", 1.0)]),
        ("a (red:1.3) ball", [("a ", 1.0), ("red", 1.3), (" ball", 1.0)]),
        ("(red: 0.5 )", [("red", 0.5)]),
        ("(red:.5)", [("red", 0.5)]),
        ("(red:-1)", [("red", -1.0)]),
        ("(a (red:2) ball:1.5)", [("a ", 1.5), ("red", 3.0), (" ball", 1.5)]),
        ("[(red)]", [("red", 1.0)]),
        (r"\(red\) \[ball\] \\", [("(red) [ball] \\", 1.0)]),
        (r"a \ b", [("a \\ b", 1.0)]),
        ("a (red ball", [("a ", 1.0), ("red ball", 1.1)]),
        ("a [red ball", [("a ", 1.0), ("red ball", 0.909091)]),
        ("a red) ball]", [("a red) ball]", 1.0)]),
        ("at 3:1.5) o'clock", [("at 3:1.5) o'clock", 1.0)]),
        ("(at 3:30 o'clock)", [("at 3:30 o'clock", 1.1)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("a ( b [c) d]", [("a ", 1.0), (" b ", 1.1), ("c", 1.0), (" d", 0.909091)]),
    ],
)
def test_a1111(text: str, expected: list[tuple[str, float]]) -> None:
    assert rounded(a1111(text)) == expected


def test_a1111_breaks() -> None:
    assert a1111("a ball BREAK a (cube:1.5)") == (
        Fragment("a ball"),
        BREAK,
        Fragment("a "),
        Fragment("cube", 1.5),
    )
    assert a1111("(a BREAK b:2)") == (Fragment("a", 2.0), BREAK, Fragment("b", 2.0))
    assert rounded(a1111("BREAKFAST at dawn")) == [("BREAKFAST at dawn", 1.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("a red ball", [("a red ball", 1.0)]),
        ("a red+ ball", [("a ", 1.0), ("red", 1.1), (" ball", 1.0)]),
        ("a red-- ball", [("a ", 1.0), ("red", 0.81), (" ball", 1.0)]),
        ("a red+, ball", [("a ", 1.0), ("red", 1.1), (", ball", 1.0)]),
        ("a (red ball)++ here", [("a ", 1.0), ("red ball", 1.21), (" here", 1.0)]),
        ("a (red ball)1.3", [("a ", 1.0), ("red ball", 1.3)]),
        ("a (red ball).5", [("a ", 1.0), ("red ball", 0.5)]),
        ('a "red ball"-', [("a ", 1.0), ("red ball", 0.9)]),
        ("(a red+ ball)2", [("a ", 2.0), ("red", 2.2), (" ball", 2.0)]),
        ("(plain) brackets", [("plain brackets", 1.0)]),
        (r"\(red\)", [("(red)", 1.0)]),
        (r"c\+\+ code", [("c++ code", 1.0)]),
        ("blue-green -- or - not", [("blue-green -- or - not", 1.0)]),
        ("a trailing \\", [("a trailing \\", 1.0)]),
    ],
)
def test_compel(text: str, expected: list[tuple[str, float]]) -> None:
    assert rounded(compel(text)) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a (red ball", "character 3 .* is never closed"),
        ("a red) ball", "character 6 .* closes nothing"),
        ('a "red ball', "is never closed"),
        ('(a "b) c"', "closes nothing"),
        ("(a, b).blend(1, 0.5)", r"\.blend\( .* is not supported"),
    ],
)
def test_compel_refuses(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        compel(text)


def sentences(count: int = 200) -> list[str]:
    chance = random.Random(5)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 8))) for _ in range(count)]


def noise(count: int = 500) -> list[str]:
    chance = random.Random(7)
    return ["".join(chance.choices('ab ()[]\\:1.5+-"BREAK\n', k=chance.randint(0, 30))) for _ in range(count)]


def without_signs(text: str) -> str:
    return " ".join(word.rstrip("+-") for word in text.split())


@pytest.mark.parametrize("parse", [a1111, compel])
def test_plain_text_is_one_fragment(parse) -> None:
    for text in sentences():
        assert parse(text) == (Fragment(text),)


@pytest.mark.parametrize(("parse", "special"), [(a1111, "()[]\\"), (compel, '()"\\+-')])
def test_escaped_text_is_plain(parse, special: str) -> None:
    for text in noise():
        text = text.replace("BREAK", "")
        escaped = "".join(f"\\{c}" if c in special else c for c in text)
        assert parse(escaped) == (Fragment(text),)


def test_a1111_takes_any_text() -> None:
    """Nothing raises, and apart from marks no letter is lost."""
    for text in noise():
        fragments = a1111(text)
        assert fragments
        assert all(math.isfinite(f.weight) for f in fragments)
        letters = [c for f in fragments for c in f.text if c in "ab"]
        assert letters == [c for c in text if c in "ab"]


def test_compel_takes_or_refuses_any_text() -> None:
    taken = 0
    for text in noise():
        try:
            fragments = compel(text)
        except InputError:
            continue
        taken += 1
        assert [c for f in fragments for c in f.text if c in "ab"] == [c for c in text if c in "ab"]
    assert taken > 50


@pytest.mark.parametrize("depth", range(6))
def test_brackets_multiply(depth: int) -> None:
    for text in sentences(20):
        (fragment,) = a1111("(" * depth + text + ")" * depth)
        assert fragment.text == text
        assert fragment.weight == pytest.approx(1.1**depth)
        (fragment,) = a1111("[" * depth + text + "]" * depth)
        assert fragment.weight == pytest.approx(1.1**-depth)
        (fragment,) = compel(f"({text})" + "+" * depth)
        assert fragment.weight == pytest.approx(1.1**depth)


@pytest.mark.parametrize("parse", [a1111, compel])
def test_neighbours_differ_in_weight(parse) -> None:
    for text in noise():
        try:
            fragments = parse(text)
        except InputError:
            continue
        for left, right in itertools.pairwise(fragments):
            assert left.breaks or right.breaks or left.weight != right.weight


@pytest.mark.parametrize("parse", [a1111, compel])
@pytest.mark.parametrize(
    "text", ["(" * 7000 + "a " * 9000 + ")" * 7000, "(a)" * 9000, "[a " * 6000 + "]" * 6000, ":" * 30_000]
)
def test_long_prompts_parse_quickly(parse, text: str) -> None:
    start = time.process_time()
    assert parse(text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("parse", "text"), [(a1111, "(" * 9000 + "a"), (a1111, f"(a:{'9' * 400})"), (compel, "a" + "+" * 9000)]
)
def test_infinite_weights_are_refused(parse, text: str) -> None:
    with pytest.raises(InputError, match="infinite weight"):
        parse(text)
