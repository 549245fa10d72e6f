"""The sizes that pictures are trained at (one, or one for each shape of picture), and how a picture is cut to one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from calotype.core.errors import InputError

Size = tuple[int, int]
"""Height and width in pixels."""


class Cut(NamedTuple):
    """A picture [3, H, W] in [-1, 1], the (height, width) that it had, and the corner (top, left) of the crop.

    The corner is in pixels after resizing.
    """

    pixels: torch.Tensor
    original: Size
    corner: Size


def buckets(resolution: int, step: int, widest: float = 2.0) -> list[Size]:
    """Sizes divisible by ``step`` with about ``resolution``² pixels, from 1:``widest`` to ``widest``:1.

    Raises ``InputError`` unless ``step`` divides the resolution.
    """
    if resolution < step or resolution % step:
        raise InputError(f"The resolution must be a multiple of {step}, not {resolution}.")
    found = set()
    for width in range(step, math.ceil(resolution * math.sqrt(widest)) + step, step):
        # rounded down: no size has more pixels than the square
        height = resolution * resolution // width // step * step
        if height and max(width / height, height / width) <= widest:
            found |= {(height, width), (width, height)}
    return sorted(found | {(resolution, resolution)})


def closest(size: Size, among: Sequence[Size]) -> Size:
    """The size whose shape is nearest to that of a picture, by the ratio of the sides."""
    shape = math.log(size[1] / size[0])
    return min(among, key=lambda s: (abs(math.log(s[1] / s[0]) - shape), -s[0] * s[1]))


def covering(original: Size, wanted: Size) -> Size:
    """The size that a picture is resized to, so that it covers ``wanted`` and keeps its shape."""
    scale = max(wanted[0] / original[0], wanted[1] / original[1])
    return max(wanted[0], round(original[0] * scale)), max(wanted[1], round(original[1] * scale))


def cut(picture: Any, wanted: Size, place: tuple[float, float] = (0.5, 0.5), flip: bool = False) -> Cut:
    """Resize a PIL picture so that it covers ``wanted`` and crop it at ``place``, (0, 0) being the top left corner.

    ``flip`` mirrors it left to right afterwards.
    """
    import numpy as np
    from PIL import Image

    original = (picture.height, picture.width)
    height, width = covering(original, wanted)
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    top = round(place[0] * (height - wanted[0]))
    left = round(place[1] * (width - wanted[1]))
    cropped = resized.crop((left, top, left + wanted[1], top + wanted[0]))
    pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).float() / 127.5 - 1
    if flip:
        pixels = pixels.flip(-1)
        left = width - wanted[1] - left
    return Cut(pixels, original, (top, left))
