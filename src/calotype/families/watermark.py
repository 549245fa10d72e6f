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
"""Pixels a side below which the mark does not fit."""


def is_available() -> bool:
    """Whether the package is installed."""
    return find_spec("imwatermark") is not None


@cache
def _encoder() -> Any:
    if not is_available():
        raise InputError(
            "add_watermarker=True needs the package invisible-watermark: pip install invisible-watermark."
        )
    from imwatermark import WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", [int(bit) for bit in f"{MESSAGE:b}"])
    return encoder


def marked(images: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1] (batch, 3, height, width) with the mark; small ones come back as they are."""
    encoder = _encoder()
    if images.shape[-1] < SMALLEST:
        return images
    # the package works in place of OpenCV's order of channels, on values up to 255
    pixels = (images * 255).cpu().permute(0, 2, 3, 1).float().numpy()[..., ::-1]
    done = np.stack([encoder.encode(picture, "dwtDct") for picture in pixels])[..., ::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(done)).permute(0, 3, 1, 2)
    return (tensor / 255).clamp(0, 1).to(images)
