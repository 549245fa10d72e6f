"""Videos: how long those that come out are, and those that go in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument, finite, positive


@dataclass(frozen=True)
class Frames(Inputs):
    """How long a video is."""

    num_frames: int | None = argument(None, "How many frames each video has.")

    def __post_init__(self) -> None:
        if self.num_frames is not None:
            positive("num_frames", self.num_frames, "frames")

    @property
    def pictures(self) -> int:
        """Pictures in one video; 1 where what is made are pictures."""
        return self.num_frames or 1


@dataclass(frozen=True)
class Drift(Inputs):
    """A video out of one picture's latents, which drift from frame to frame (arXiv:2303.13439, section 3.3.1)."""

    video_length: int | None = argument(8, "How many frames the video has.")
    motion_field_strength_x: float = argument(
        12, "How far each frame is shifted to the left of the one before, in 512ths of the width."
    )
    motion_field_strength_y: float = argument(12, "The same upwards, in 512ths of the height.")
    t0: int = argument(44, "How many steps from the end the latents are shifted.")
    t1: int = argument(
        47, "How many steps from the end the frames go apart, noised anew to there; more than t0."
    )
    frame_ids: list[int] | None = argument(
        None, "The frames' numbers, by which they are shifted, for a video that is made in parts."
    )

    def __post_init__(self) -> None:
        positive("video_length", self.video_length, "frames")
        for name in ("motion_field_strength_x", "motion_field_strength_y"):
            finite(name, getattr(self, name))
        for name in ("t0", "t1"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{name} must be a whole number of steps, 0 or more, not {value!r}.")
        if self.t0 >= self.t1:
            raise InputError(f"t0={self.t0} must be below t1={self.t1}: both count steps from the end.")
        if self.frame_ids is not None and len(self.frame_ids) != self.video_length:
            raise InputError(
                f"There are {len(self.frame_ids)} frame_ids for a video_length of {self.video_length}; give one for "
                f"each frame."
            )

    @property
    def numbers(self) -> list[int]:
        """The number of each frame."""
        return list(range(self.video_length or 1)) if self.frame_ids is None else list(self.frame_ids)


@dataclass(frozen=True)
class Moving(Inputs):
    """A video to start from."""

    video: Any = argument(
        None,
        "The video to start from: a list of PIL images, an array (frames, height, width, 3) or a tensor (frames, 3, "
        "height, width), or several videos as a list or with one more axis.",
    )
