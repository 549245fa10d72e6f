"""People's poses in OpenPose's drawing (https://arxiv.org/abs/1812.08008): coloured limbs and joints on black."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw

from calotype.core.errors import InputError

_JOINTS = 18
"""Nose, neck; right shoulder, elbow, wrist; left ones; right hip, knee, ankle; left ones; right and left eye, ear."""

_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Pairs of joints, in the order in which they are drawn and coloured."""

_OF_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""Where each joint stands among the 17 of the COCO data set, which has no neck."""

_COLORS = tuple(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i / _JOINTS, 1, 1)) for i in range(_JOINTS))
_LIMB_BRIGHTNESS = 0.6


def pose(
    people: Sequence[Any] | np.ndarray, size: tuple[int, int], width: int = 4, min_score: float = 0.3
) -> PIL.Image.Image:
    """The skeletons of ``people`` in a picture of ``size`` (width, height).

    A person is 18 joints in OpenPose's order, or 17 in COCO's (the neck is then put between the shoulders), each
    (x, y) in pixels, or (x, y, score), or None. A joint that is None, not finite or below ``min_score`` is not drawn.
    ``width`` is half that of limbs, and the radius of joints. Raises ``InputError`` for other forms.
    """
    if min(size) < 1 or width < 1:
        raise InputError(
            f"A picture of {size[0]}x{size[1]} with limbs of {width} cannot be drawn; give at least 1."
        )
    canvas = PIL.Image.new("RGB", (size[0], size[1]))
    draw = PIL.ImageDraw.Draw(canvas)
    skeletons = [_joints(person, min_score) for person in people]
    for joints in skeletons:
        for (a, b), color in zip(_LIMBS, _COLORS, strict=False):
            if a in joints and b in joints:
                dim = tuple(int(_LIMB_BRIGHTNESS * c) for c in color)
                draw.polygon(_ellipse(joints[a], joints[b], width), fill=dim)
    for joints in skeletons:
        for joint, (x, y) in joints.items():
            draw.ellipse((x - width, y - width, x + width, y + width), fill=_COLORS[joint])
    return canvas


def _joints(person: Any, min_score: float) -> dict[int, tuple[float, float]]:
    """The visible joints by their number."""
    if len(person) not in (_JOINTS, _JOINTS - 1):
        raise InputError(f"A person has 18 joints (OpenPose) or 17 (COCO), not {len(person)}.")
    points = [_point(joint, min_score) for joint in person]
    if len(points) < _JOINTS:
        shoulders = [points[5], points[6]]
        neck = None if None in shoulders else tuple(np.mean(np.array(shoulders, float), axis=0))
        points = [neck if index is None else points[index] for index in _OF_COCO]
    return {number: point for number, point in enumerate(points) if point is not None}


def _point(joint: Any, min_score: float) -> Any:
    if joint is None:
        return None
    values = [float(value) for value in joint]
    if len(values) not in (2, 3):
        raise InputError(f"A joint is (x, y), (x, y, score) or None, not {joint!r}.")
    seen = all(math.isfinite(value) for value in values) and (len(values) < 3 or values[2] >= min_score)
    return (values[0], values[1]) if seen else None


def _ellipse(
    start: tuple[float, float], end: tuple[float, float], half_width: int
) -> list[tuple[float, float]]:
    """The outline of an ellipse from ``start`` to ``end``."""
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    along = ((x1 - x0) / length, (y1 - y0) / length) if length else (1.0, 0.0)
    turns = np.linspace(0.0, 2.0 * math.pi, 48, endpoint=False)
    u, v = length / 2 * np.cos(turns), half_width * np.sin(turns)
    x = (x0 + x1) / 2 + u * along[0] - v * along[1]
    y = (y0 + y1) / 2 + u * along[1] + v * along[0]
    return list(zip(x.tolist(), y.tolist(), strict=True))
