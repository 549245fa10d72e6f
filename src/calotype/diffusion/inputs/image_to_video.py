"""A picture that is to move, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument, each, finite, positive
from calotype.diffusion.limits import limits
from calotype.image_processor import as_list, is_pil


@dataclass(frozen=True)
class Still(Inputs):
    """A picture that a video shows first."""

    image: Any = argument(
        None,
        "The picture that is to move: PIL, a list of them, or a tensor (batch, 3, height, width) in [0, 1].",
    )
    num_videos_per_prompt: int | None = argument(1, "How many videos of each picture.")

    def __post_init__(self) -> None:
        if self.image is None:
            raise InputError("image is not given; pass the picture that is to move.")
        if isinstance(self.image, torch.Tensor):
            if self.image.ndim != 4 or self.image.shape[1] != 3:
                raise InputError(
                    f"image must be a tensor (batch, 3, height, width), not {tuple(self.image.shape)}."
                )
        elif not all(is_pil(one) for one in as_list(self.image)):
            raise InputError("image must be a PIL image, a list of them or a tensor, not an array.")
        limits().check("pictures", self.pictures, f"A call for {self.pictures:,} videos")

    @property
    def given(self) -> int:
        """How many pictures are given."""
        return len(self.image) if isinstance(self.image, torch.Tensor) else len(as_list(self.image))

    @property
    def repeats(self) -> int:
        """Videos to make of each."""
        return each("num_videos_per_prompt", self.num_videos_per_prompt, "videos")

    @property
    def pictures(self) -> int:
        """Videos in the whole call."""
        return self.given * self.repeats


@dataclass(frozen=True)
class Motion(Inputs):
    """What a denoiser of videos is told of them beside the picture (arXiv:2311.15127)."""

    fps: int = argument(7, "Frames a second that the video is meant for.")
    motion_bucket_id: int = argument(127, "How much moves, as the model was trained: 1 little, 255 most.")
    noise_aug_strength: float = argument(
        0.02, "Noise to add to the picture; more leaves more to invent, and lets more move."
    )

    def __post_init__(self) -> None:
        for name in ("fps", "motion_bucket_id"):
            finite(name, getattr(self, name))
        if finite("noise_aug_strength", self.noise_aug_strength) < 0:
            raise InputError(f"noise_aug_strength must be 0 or more, not {self.noise_aug_strength!r}.")

    @property
    def numbers(self) -> tuple[float, float, float]:
        """The numbers as the model was trained to read them, of frames a second one less."""
        return self.fps - 1, self.motion_bucket_id, self.noise_aug_strength


@dataclass(frozen=True)
class Pace(Inputs):
    """How fast the frames of a video follow one another."""

    target_fps: int | None = argument(16, "Frames a second that the video is meant for.")

    def __post_init__(self) -> None:
        if self.target_fps is None or finite("target_fps", self.target_fps) <= 0:
            raise InputError(
                f"target_fps must be a number of frames a second above 0, not {self.target_fps!r}."
            )


@dataclass(frozen=True)
class Decoding(Inputs):
    """How much is decoded at once."""

    decode_chunk_size: int | None = argument(
        None,
        "How many frames of a video to decode at once; fewer take less memory and flicker more. By default all.",
    )

    def __post_init__(self) -> None:
        if self.decode_chunk_size is not None:
            positive("decode_chunk_size", self.decode_chunk_size, "frames")
