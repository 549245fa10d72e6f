"""Arguments of the tasks that edit a picture, enlarge it or vary it, beside those that all tasks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs import Inputs, _finite, _positive, argument
from calotype.diffusion.limits import limits
from calotype.image_processor import as_list, is_pil


@dataclass(frozen=True)
class ImageGuide(Inputs):
    """How strongly the given picture steers."""

    image_guidance_scale: float = argument(
        1.5, "How strongly to stay near the picture; below 1 turns guidance off altogether."
    )

    def __post_init__(self) -> None:
        _finite("image_guidance_scale", self.image_guidance_scale)


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


@dataclass(frozen=True)
class Original(Inputs):
    """A picture that says alone what to make."""

    image: Any = argument(
        None, "The picture to vary: PIL, a list of them, or pixel values as CLIP takes them."
    )
    num_images_per_prompt: int | None = argument(1, "How many pictures of each.")

    def __post_init__(self) -> None:
        if self.image is None:
            raise InputError("image is not given; pass the picture to vary.")
        if isinstance(self.image, torch.Tensor):
            if self.image.ndim != 4:
                raise InputError(
                    f"image must be a tensor (batch, 3, height, width), not {tuple(self.image.shape)}."
                )
        elif not all(is_pil(one) for one in as_list(self.image)):
            raise InputError(
                "image must be a PIL image, a list of them or a tensor of pixel values, not an array."
            )
        limits().check("pictures", self.pictures, f"A call for {self.pictures:,} pictures")

    @property
    def given(self) -> int:
        """How many pictures are given."""
        if isinstance(self.image, torch.Tensor):
            return len(self.image)
        return len(self.image) if isinstance(self.image, list | tuple) else 1

    @property
    def repeats(self) -> int:
        """Pictures to make of each."""
        if self.num_images_per_prompt is None:
            return 1
        return _positive("num_images_per_prompt", self.num_images_per_prompt, "pictures")

    @property
    def pictures(self) -> int:
        """Pictures in the whole call."""
        return self.given * self.repeats


@dataclass(frozen=True)
class Distilled(Inputs):
    """What a model that takes few steps was distilled from."""

    original_inference_steps: int | None = argument(
        None,
        "The steps of the teacher to choose the timesteps from; by default what the scheduler was made for.",
    )

    def __post_init__(self) -> None:
        if self.original_inference_steps is not None:
            _positive("original_inference_steps", self.original_inference_steps, "steps")


@dataclass(frozen=True)
class EarlierCallback(Inputs):
    """The callback of the first releases, where it is an argument of its own."""

    callback: Callable[[int, int, torch.Tensor], None] | None = argument(
        None, "Called as f(step, timestep, latents) every callback_steps steps."
    )
    callback_steps: int = argument(1, "How many steps lie between two calls of callback.")


EDITING_GROUPS: tuple[type[Inputs], ...] = (ImageGuide, Depth, Degraded, Original, Distilled, EarlierCallback)
