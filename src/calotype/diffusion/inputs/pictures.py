"""Pictures that go in, and the size of those that come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument, finite, positive
from calotype.diffusion.limits import limits


@dataclass(frozen=True)
class Size(Inputs):
    """The picture's size in pixels."""

    height: int | None = argument(None, "Height in pixels; by default what the model was trained for.")
    width: int | None = argument(None, "Width in pixels; by default what the model was trained for.")

    def checked(self, default: tuple[int, int], multiple: int, pictures: int) -> tuple[int, int]:
        """Height and width, refused when they do not divide by ``multiple`` or are over the limits."""
        sizes = []
        for name, value, usual in zip(("height", "width"), (self.height, self.width), default, strict=True):
            side = usual if value is None else positive(name, value, "pixels")
            if side % multiple:
                lower = side // multiple * multiple
                near = f"{lower} and {lower + multiple}" if lower else f"{multiple}"
                raise InputError(
                    f"{name} must be divisible by {multiple} for this model, and {side} is not; near it: {near}."
                )
            limits().check("side", side, f"A {name} of {side:,} pixels")
            sizes.append(side)
        height, width = sizes
        pixels = height * width * pictures
        limits().check("pixels", pixels, f"{pictures} x {height} x {width} = {pixels:,} pixels")
        return height, width


@dataclass(frozen=True)
class Picture(Inputs):
    """A picture to start from."""

    image: Any = argument(
        None,
        "The picture to start from: PIL, array (batch, height, width, 3) or tensor (batch, 3, height, width).",
    )
    strength: float = argument(0.8, "How much of the picture to forget, from 0 (nothing) to 1 (everything).")

    def __post_init__(self) -> None:
        if not 0 <= finite("strength", self.strength) <= 1:
            raise InputError(f"strength must be between 0 and 1, not {self.strength!r}.")


@dataclass(frozen=True)
class Masked(Inputs):
    """What part of a picture to replace."""

    mask_image: Any = argument(
        None, "The mask: white where something new goes, black where the picture stays."
    )
    masked_image_latents: torch.Tensor | None = argument(
        None, "Latents of the picture without the masked part."
    )
    padding_mask_crop: int | None = argument(
        None, "Work on the region around the mask alone, with so many pixels of margin, and paste it back."
    )
    composite: bool = argument(
        False,
        "Whether to paste what was made into the picture, in its own size, so that no pixel where the mask is black "
        "changes.",
        beside="mask_image",
    )


@dataclass(frozen=True)
class Depth(Inputs):
    """How far away the things in the picture are."""

    depth_map: torch.Tensor | None = argument(
        None, "Depth (batch, height, width) in any unit; estimated from the picture if not given."
    )

    def __post_init__(self) -> None:
        depth = self.depth_map
        if depth is not None and (not isinstance(depth, torch.Tensor) or depth.ndim != 3):
            shape = tuple(depth.shape) if hasattr(depth, "shape") else type(depth).__name__
            raise InputError(f"depth_map must be a tensor (batch, height, width), not {shape}.")


@dataclass(frozen=True)
class Degraded(Inputs):
    """How bad the picture to be enlarged is taken to be."""

    noise_level: int = argument(
        20, "Noise to add to the picture before it is enlarged, as a training step; more invents more detail."
    )

    def __post_init__(self) -> None:
        level = self.noise_level
        if isinstance(level, bool) or not isinstance(level, int) or level < 0:
            raise InputError(f"noise_level must be a whole number, 0 or more, not {level!r}.")
