"""Videos: how long those that come out are, those that go in, and what frames are told or shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument, finite, positive, text_list
from calotype.video_processor import as_videos


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
    enforce_inference_steps: bool = argument(
        False,
        "Whether to take num_inference_steps steps whatever strength is; otherwise it is a part of them.",
    )


@dataclass(frozen=True)
class ControlFrames(Inputs):
    """Pictures that frames are to follow."""

    conditioning_frames: Any = argument(
        None,
        "The pictures that the ControlNet reads: a list of one for each frame, or of such lists for several "
        "ControlNets; for a sparse ControlNet a list of pictures for controlnet_frame_indices.",
    )
    controlnet_frame_indices: Sequence[int] = argument(
        (0,), "The frames that the pictures for a sparse ControlNet are for, counted from 0."
    )


def frames_of(arguments: Mapping[str, Any]) -> int | None:
    """Frames of each video of a call, as many as are asked for or given; None where what is made are pictures."""
    asked, video = Frames.of(arguments).num_frames, Moving.of(arguments).video
    if asked is not None or "video" not in arguments:
        return asked
    latents = arguments.get("latents")
    if video is None:
        return None if latents is None else latents.shape[2]
    return len(as_videos(video)[0])


def told_by_frame(name: str, prompt: str | dict[int, str], frames: int) -> dict[int, str]:
    """Texts by the frames that they are for, a single one for the first; the last text goes on to the last frame.

    Raises ``InputError`` where there is none for frame 0, and for frames that there are not.
    """
    texts = {0: prompt} if isinstance(prompt, str) else prompt
    for frame in texts:
        if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < frames:
            raise InputError(
                f"{name} has a text for frame {frame!r}; the frames of this video are the numbers 0 to {frames - 1}."
            )
    if 0 not in texts:
        raise InputError(f"{name} has no text for frame 0, with which a video begins.")
    text_list(name, list(texts.values()))
    found = dict(sorted(texts.items()))
    return {**found, frames - 1: found[max(found)]}
