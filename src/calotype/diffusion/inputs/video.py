"""Videos: how long those that come out are, those that go in, and what frames are told or shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calotype.core.errors import InputError
from calotype.diffusion.inputs.base import Inputs, argument, positive, text_list
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
