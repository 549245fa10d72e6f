"""The control picture of inpainting: the picture itself, with what is to be made anew marked."""

from __future__ import annotations

import os

import numpy as np
import PIL.Image
import torch

from calotype.core.errors import InputError
from calotype.utils.images import load_image

_MARK = -1.0


def make_inpaint_condition(
    image: str | os.PathLike[str] | PIL.Image.Image, mask_image: str | os.PathLike[str] | PIL.Image.Image
) -> torch.Tensor:
    """The picture as (1, 3, height, width) in [0, 1], with -1 where the mask is white (more than half).

    Raises ``InputError`` if the two differ in size.
    """
    picture = load_image(image)
    mask = load_image(mask_image, lambda found: found.convert("L"))
    if picture.size != mask.size:
        raise InputError(
            f"The picture is {picture.width}x{picture.height} and the mask {mask.width}x{mask.height}; resize one of "
            f"them."
        )
    pixels = np.array(picture, dtype=np.float32) / 255.0
    pixels[np.asarray(mask) > 127] = _MARK
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
