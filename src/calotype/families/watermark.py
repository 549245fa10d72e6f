"""The invisible watermark that Stable Diffusion XL's authors put into pictures, through the package of that name."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError

MESSAGE = 0b101100111110110010010000011110111011000110011110
"""The 48 bits of the reference implementation."""
SMALLEST = 256
"""Pixels in width, and the side of the square in area, below which the mark does not fit into a picture."""


def is_available() -> bool:
    """Whether the package is installed."""
    return find_spec("imwatermark") is not None


def check(wanted: bool | None) -> None:
    """Refuse to mark pictures without the package."""
    if wanted and not is_available():
        raise InputError(
            "add_watermarker=True needs the package invisible-watermark: pip install invisible-watermark."
        )


@cache
def _encoder() -> Any:
    from imwatermark import WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", [int(bit) for bit in f"{MESSAGE:b}"])
    return encoder


def marked(images: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1, 1] (batch, 3, height, width) with the mark; small ones come back as they are."""
    height, width = images.shape[-2:]
    if width < SMALLEST or height * width < SMALLEST**2:
        return images
    # the package works in OpenCV's order of channels, on values up to 255
    pixels = (images * 127.5 + 127.5).cpu().permute(0, 2, 3, 1).float().numpy()[..., ::-1]
    done = np.stack([_encoder().encode(picture, "dwtDct") for picture in pixels])[..., ::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(done)).permute(0, 3, 1, 2)
    return (tensor / 127.5 - 1).clamp(-1, 1).to(images)
