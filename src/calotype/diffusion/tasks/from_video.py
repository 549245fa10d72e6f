"""Video-to-video: the latents of a video's frames, noised to a level part of the way (SDEdit, arXiv:2108.01073)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.core.frames import apart, together
from calotype.core.random import randn_tensor
from calotype.diffusion.frame_by_frame import of_frames
from calotype.diffusion.inputs import Moving, Picture, Size
from calotype.diffusion.tasks.from_image import copies, later_part
from calotype.diffusion.tasks.task import Path, Start, Task, picture_size
from calotype.video_processor import as_videos

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family


@dataclass(frozen=True)
class FromVideo(Task):
    """Start from a video; ``strength`` says how much of it is forgotten."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a video."""
        video = Moving.of(arguments).video
        if video is None:
            raise InputError("video is not given; pass the video to start from.")
        as_videos(video)

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """The video's own size, rounded down to what the autoencoder divides."""
        video = as_videos(Moving.of(arguments).video)[0]
        return picture_size(family, video[0], Size.of(arguments), pictures * len(video))

    def path(self, call: Call, path: Path) -> Path:
        """The last ``strength`` of the schedule."""
        return later_part(call, path, Picture.of(call.arguments).strength)

    def start(self, call: Call, path: Path) -> Start:
        """Encode the frames, then draw the noise; latents that stand where the way begins are taken as they are."""
        noise = call.noise
        if noise.latents is not None:
            return Start(noise.latents.to(call.device))
        processor = call.family.video_processor
        video = processor.preprocess_video(Moving.of(call.arguments).video, call.height, call.width)
        latents = encoded(call, video.to(call.device, call.family.dtype))
        frames = latents.shape[2]
        latents = together(latents)
        drawn = randn_tensor(latents.shape, of_frames(noise.generator, frames), call.device, latents.dtype)
        level = path.timesteps[:1].repeat(len(latents))
        return Start(apart(call.scheduler.add_noise(latents, drawn, level), frames))


def encoded(call: Call, video: torch.Tensor) -> torch.Tensor:
    """Videos, or latents as they are, as latents (videos of the call, channels, frames, height, width).

    With several generators each video is drawn with its own.
    """
    generator, frames = call.noise.generator, video.shape[2]
    if video.shape[1] == call.family.latent_channels:
        latents = video
    elif isinstance(generator, list | tuple):
        each = video.repeat(copies(len(video), call.pictures), 1, 1, 1, 1)
        pairs = zip(each.split(1), generator, strict=True)
        latents = torch.cat([apart(call.family.to_latents(together(one), g), frames) for one, g in pairs])
    else:
        latents = apart(call.family.to_latents(together(video), generator), frames)
    return latents.repeat(copies(len(latents), call.pictures), 1, 1, 1, 1)
