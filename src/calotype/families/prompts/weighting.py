"""The syntaxes in which a prompt weights its words, as pure functions from a text to its fragments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from calotype.core.errors import InputError


class Fragment(NamedTuple):
    """A part of a prompt with one weight; one that ``breaks`` has no text and begins a new chunk."""

    text: str
    weight: float = 1.0
    breaks: bool = False


BREAK = Fragment("", 1.0, breaks=True)


@dataclass(eq=False)
class Group:
    """Brackets of one kind around fragments, with what they multiply the weights by."""

    kind: str
    start: int
    factor: float


ROUND, SQUARE = 1.1, 1 / 1.1
"""What one pair of brackets multiplies by in the a1111 syntax."""

_A1111 = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|\s*\b(?P<chunk>BREAK)\b\s*"
    r"|(?:[^\\()\[\]:\s]+|\s+|.)",
    re.DOTALL,
)

PLUS, MINUS = 1.1, 0.9
"""What one sign multiplies by in the compel syntax."""

_COMPEL = re.compile(
    r"""(?P<open>\()|(?P<close>\))|(?P<quote>")|(?P<space>\s+)|(?P<word>(?:\\.|[^\\\s()"])+)""", re.DOTALL
)
_STRENGTH = re.compile(r"\++|-+|\d+\.?\d*|\.\d+")
_OPERATOR = re.compile(r"\.(\w+)\(")
_PUNCTUATION = ".,;:!?"


def plain(text: str) -> tuple[Fragment, ...]:
    """The text as it is."""
    return (Fragment(text),)


def a1111(text: str) -> tuple[Fragment, ...]:
    r"""``(words)`` ×1.1, ``[words]`` ÷1.1, ``(words:1.3)`` ×1.3, nested at will; ``\(`` is a plain bracket.

    A bracket that is never closed reaches to the end, one that was never opened is text, and ``BREAK`` begins a new
    chunk, as in AUTOMATIC1111's web UI.
    """
    parts: list[Fragment | Group] = []
    opened: dict[str, list[Group]] = {"(": [], "[": []}
    for found in _A1111.finditer(text):
        mark = found["bracket"]
        closing = "(" if mark == ")" or found["weight"] else "[" if mark == "]" else ""
        if found["chunk"]:
            parts.append(BREAK)
        elif found["escaped"]:
            parts.append(Fragment(found["escaped"]))
        elif mark in opened:
            group = Group(mark, found.start(), ROUND if mark == "(" else SQUARE)
            opened[mark].append(group)
            parts.append(group)
        elif closing and opened[closing]:
            group = opened[closing].pop()
            group.factor = float(found["weight"]) if found["weight"] else group.factor
            parts.append(group)
        else:
            parts.append(Fragment(found[0]))
    return _merged(_weighed(parts))


def compel(text: str) -> tuple[Fragment, ...]:
    r"""``word+`` ×1.1, ``word--`` ×0.9², ``(two words)++``, ``(two words)1.3``, nested at will; ``\(`` is plain.

    Quotation marks group as brackets do. Raises ``InputError`` for a group that is not closed or not opened, and for
    the operators ``.swap``, ``.blend`` and ``.and``.
    """
    parts: list[Fragment | Group] = []
    opened: list[Group] = []
    position = 0
    while position < len(text):
        found = _COMPEL.match(text, position)
        # the one character that begins no token is a backslash at the very end
        token, kind = (found[0], found.lastgroup) if found else (text[position], "space")
        start, position = position, position + len(token)
        inside = opened[-1].kind if opened else ""
        if kind == "open" or (kind == "quote" and inside != '"'):
            opened.append(Group(token, start, 1.0))
            parts.append(opened[-1])
        elif kind == "close" and inside != "(":
            raise InputError(
                rf"The bracket at character {start + 1} of the prompt {text!r} closes nothing; write \) for a plain "
                "one."
            )
        elif kind in ("close", "quote"):
            if operator := _OPERATOR.match(text, position):
                raise InputError(f"The operator .{operator[1]}( in the prompt {text!r} is not supported.")
            parts.append(group := opened.pop())
            if strength := _STRENGTH.match(text, position):
                position = strength.end()
                group.factor = _strength(strength[0])
        elif kind == "word":
            parts.extend(_signed(token))
        else:
            parts.append(Fragment(token))
    if opened:
        group = opened[-1]
        raise InputError(
            f"The {group.kind} at character {group.start + 1} of the prompt {text!r} is never closed; write "
            f"\\{group.kind} for a plain one."
        )
    return _merged(_weighed(parts))


SYNTAXES: dict[str | None, Callable[[str], tuple[Fragment, ...]]] = {
    None: plain,
    "a1111": a1111,
    "compel": compel,
}
"""The parsers by the names that ``prompt_weighting`` takes."""


def _signed(token: str) -> tuple[Fragment, Fragment]:
    """A word of the compel syntax, weighted by the signs at its end, and the punctuation after them."""
    core = token.rstrip(_PUNCTUATION)
    stem = core.rstrip(core[-1:]) if core[-1:] in ("+", "-") else core
    if (len(stem) - len(stem.rstrip("\\"))) % 2:
        stem = core[: len(stem) + 1]  # an escaped sign is part of the word
    sign = core[len(stem) :]
    if not sign or not stem.strip("+-"):
        return Fragment(_unescaped(token)), Fragment("")
    return Fragment(_unescaped(stem), _strength(sign)), Fragment(token[len(core) :])


def _strength(suffix: str) -> float:
    """What a sign repeated, or a number, multiplies by."""
    base = {"+": PLUS, "-": MINUS}.get(suffix[0])
    try:
        return float(suffix) if base is None else base ** len(suffix)
    except OverflowError:
        return math.inf


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _weighed(parts: Iterable[Fragment | Group]) -> Iterable[Fragment]:
    """The fragments, times the factors of the groups around them. A group stands where it opens and where it closes.

    Groups of one kind nest; two kinds may overlap.
    """
    around: dict[str, list[tuple[Group, float]]] = {}
    for part in parts:
        if isinstance(part, Group):
            stack = around.setdefault(part.kind, [])
            if stack and stack[-1][0] is part:
                stack.pop()
            else:
                stack.append((part, part.factor * (stack[-1][1] if stack else 1.0)))
        elif part.breaks:
            yield part
        else:
            weight = part.weight
            for stack in around.values():
                weight *= stack[-1][1] if stack else 1.0
            yield part._replace(weight=weight)


def _merged(fragments: Iterable[Fragment]) -> tuple[Fragment, ...]:
    """Neighbours of one weight as one fragment, without empty ones; at least one."""
    merged: list[Fragment] = []
    for (weight, breaks), run in groupby(
        (f for f in fragments if f.text or f.breaks), key=lambda f: (f.weight, f.breaks)
    ):
        if not math.isfinite(weight):
            raise InputError(
                "A word in the prompt has an infinite weight; use fewer brackets, signs or digits."
            )
        together = tuple(run)
        merged.extend(together if breaks else [Fragment("".join(f.text for f in together), weight)])
    return tuple(merged) or (Fragment(""),)
