"""Videos: how long those that come out are, and those that go in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calotype.diffusion.inputs.base import Inputs, argument, positive


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
class Moving(Inputs):
    """A video to start from."""

    video: Any = argument(
        None,
        "The video to start from: a list of PIL images, an array (frames, height, width, 3) or a tensor (frames, 3, "
        "height, width), or several videos as a list or with one more axis.",
    )
