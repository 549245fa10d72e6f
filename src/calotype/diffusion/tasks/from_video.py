"""Video-to-video: the latents of a video's frames, noised to a level part of the way (SDEdit, arXiv:2108.01073)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from calotype.core.errors import InputError
from calotype.core.frames import apart, together
from calotype.core.random import randn_tensor
from calotype.diffusion.inputs import Decoding, Moving, Noise, Picture, Size, Steps
from calotype.diffusion.tasks.frames_from_noise import decoded_in_parts
from calotype.diffusion.tasks.from_image import begun_at, copies, later_part
from calotype.diffusion.tasks.task import Path, Start, Task, picture_size
from calotype.video_processor import as_videos

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family


@dataclass(frozen=True)
class FromVideo(Task):
    """Start from a video; ``strength`` says how much of it is forgotten."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse a call without a video, with latents in its place beside it, and with no part of the way to go."""
        moving, latents = Moving.of(arguments), Noise.of(arguments).latents
        if (moving.video is None) == (latents is None):
            raise InputError(
                "video is not given; pass the video to start from."
                if latents is None
                else "Both video and latents are given; the call would start from either, so give one of them."
            )
        if latents is None:
            as_videos(moving.video)
        elif latents.ndim != 5:
            raise InputError(
                f"latents of videos have five axes (videos, channels, frames, height, width), not the shape "
                f"{tuple(latents.shape)}."
            )
        if moving.enforce_inference_steps and not Picture.of(arguments).strength:
            raise InputError(
                "strength=0 leaves no steps to take; enforce_inference_steps needs more than that."
            )

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """The video's own size, rounded down to what the autoencoder divides."""
        latents = Noise.of(arguments).latents
        if latents is not None:
            return picture_size(family, latents[:1, :, 0], Size(), pictures * latents.shape[2])
        video = as_videos(Moving.of(arguments).video)[0]
        return picture_size(family, video[0], Size.of(arguments), pictures * len(video))

    def steps(self, call: Call) -> Steps:
        """As asked for; or so many that the later part of the way has the number asked for."""
        steps = call.steps
        if not Moving.of(call.arguments).enforce_inference_steps:
            return steps
        return replace(
            steps, num_inference_steps=int(steps.num_inference_steps / Picture.of(call.arguments).strength)
        )

    def path(self, call: Call, path: Path) -> Path:
        """The last ``strength`` of the schedule, or as many steps as were asked for."""
        if not Moving.of(call.arguments).enforce_inference_steps:
            return later_part(call, path, Picture.of(call.arguments).strength)
        kept = min(call.steps.num_inference_steps, path.steps)
        return begun_at(call, path, (path.steps - kept) * call.scheduler.order, kept)

    def start(self, call: Call, path: Path) -> Start:
        """Encode the frames, then draw the noise; latents that stand where the way begins are taken as they are."""
        noise = call.noise
        if noise.latents is not None:
            return Start(noise.latents.to(call.device, call.family.dtype))
        processor = call.family.video_processor
        video = processor.preprocess_video(Moving.of(call.arguments).video, call.height, call.width)
        latents = encoded(call, video.to(call.device, call.family.dtype)).transpose(1, 2)
        # as it has always been drawn: frame after frame, and for each all channels
        drawn = randn_tensor(latents.shape, noise.generator, call.device, latents.dtype).transpose(1, 2)
        level = path.timesteps[:1].repeat(len(latents))
        return Start(call.scheduler.add_noise(latents.transpose(1, 2), drawn, level), noise=drawn)

    def decode(self, call: Call, latents: torch.Tensor) -> torch.Tensor:
        """Videos, so many frames at once as the call allows."""
        return decoded_in_parts(call, latents)


def encoded(call: Call, video: torch.Tensor) -> torch.Tensor:
    """Videos, or latents as they are, as latents (videos of the call, channels, frames, height, width).

    With several generators each video is drawn with its own. As many frames are encoded at once as are decoded.
    """
    generator, frames = call.noise.generator, video.shape[2]
    size = Decoding.of(call.arguments).decode_chunk_size or frames

    def through(one: torch.Tensor, source: Any) -> torch.Tensor:
        parts = together(one).split(size)
        return apart(torch.cat([call.family.to_latents(part, source) for part in parts]), frames)

    if video.shape[1] == call.family.latent_channels:
        latents = video
    else:
        each = video
        sources = [generator] * len(video)
        if isinstance(generator, list | tuple):
            each = video.repeat_interleave(copies(len(video), call.pictures), dim=0)
            sources = list(generator)
        latents = torch.cat(
            [through(one, source) for one, source in zip(each.split(1), sources, strict=True)]
        )
    return latents.repeat_interleave(copies(len(latents), call.pictures), dim=0)
