"""What exists in the pocket world: names, their order (which is their id) and their physical values."""

from __future__ import annotations

from calotype.core.errors import InputError

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "pyramid", "capsule", "octahedron", "star")
EXTRA_SHAPES = ("heart",)
"""Shapes that no bundled model was trained on, to teach one: they are in no scene unless they are asked for by name."""
EVERY_SHAPE = (*SHAPES, *EXTRA_SHAPES)
"""Their order is the id of a shape."""
COLORS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "white", "black")
SIZES = ("small", "medium", "big")
MATERIALS = ("matte", "shiny", "metal")
FLOORS = ("wood", "grass", "tiles", "sand", "snow")
SKIES = ("day", "sunset", "night", "overcast")

MAX_OBJECTS = 3

COLOR_SRGB = {
    "red": "#d3182a",
    "orange": "#f5780a",
    "yellow": "#fbd20c",
    "green": "#1f9e3a",
    "turquoise": "#19c8c0",
    "blue": "#1d4fd8",
    "purple": "#7b2cbf",
    "pink": "#f77fb6",
    "white": "#f4f3ef",
    "black": "#131316",
}
"""The colour of a surface in white light, as an sRGB hex string."""

SIZE_RADIUS = {"small": 0.54, "medium": 0.74, "big": 1.04}
"""Scale of an object in world units; a shape's own measures (``sdf.py``) are multiplied by it."""

HELD_OUT = frozenset((shape, COLORS[(3 * i + 1) % len(COLORS)]) for i, shape in enumerate(SHAPES))
"""(shape, colour) pairs that no training scene contains: one colour a shape, a different one for each."""


def index_of(names: tuple[str, ...], name: str, what: str) -> int:
    """The id of ``name`` in one of the tuples above.

    Raises:
        InputError: the pocket world has no such thing; the text lists what it has.
    """
    if name not in names:
        raise InputError(f"The pocket world has no {what} {name!r}; it has {', '.join(names)}.")
    return names.index(name)


def linear_rgb(srgb_hex: str) -> tuple[float, float, float]:
    """``#rrggbb`` -> linear-light RGB in [0, 1] (IEC 61966-2-1)."""
    channels = (int(srgb_hex[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return red, green, blue
