"""Videos in any form that users have them, made into what autoencoders read, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.frames import apart, together
from calotype.diffusion import images as presentation
from calotype.image_processor import VaeImageProcessor, is_pil


def as_videos(video: Any) -> list[Any]:
    """One video or several as a list of videos, each a list of pictures or an array or tensor of four dimensions.

    Raises ``InputError`` for anything that is no video, and for a video without frames.
    """
    if _is_array(video) and video.ndim == 5:
        videos = list(video)
    elif _is_clip(video):
        videos = [video]
    elif isinstance(video, list | tuple) and video and all(_is_array(one) and one.ndim == 5 for one in video):
        videos = [clip for several in video for clip in several]
    elif isinstance(video, list | tuple) and video and all(map(_is_clip, video)):
        videos = list(video)
    else:
        raise InputError(
            f"A video must be a list of pictures, an array (frames, height, width, channels) or a tensor (frames, "
            f"channels, height, width), or a list of these, not {video!r:.80}."
        )
    if 0 in map(len, videos):
        raise InputError("A video has no frames.")
    return videos


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor)


def _is_clip(value: Any) -> bool:
    """Whether this is one video."""
    if _is_array(value):
        return value.ndim == 4
    return isinstance(value, list | tuple) and all(
        is_pil(frame) or (_is_array(frame) and frame.ndim in (2, 3)) for frame in value
    )


class VideoProcessor(VaeImageProcessor):
    """Videos for an autoencoder of pictures, and videos out of it; the options are those of the image processor."""

    def preprocess_video(
        self, video: Any, height: int | None = None, width: int | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Videos as a tensor (videos, channels, frames, height, width), in [-1, 1] if ``do_normalize``.

        Takes lists of PIL images, arrays (frames, height, width, channels), tensors (frames, channels, height, width),
        and lists or stacks of several. Raises ``InputError`` for anything else, and for videos of different lengths.
        """
        videos = as_videos(video)
        lengths = [len(one) for one in videos]
        if len(set(lengths)) > 1:
            raise InputError(
                f"The videos have {lengths} frames; give videos of one length, or one at a time."
            )
        pixels = [self.preprocess(one, height=height, width=width, **kwargs) for one in videos]
        return torch.stack(pixels).transpose(1, 2)

    def postprocess_video(self, video: torch.Tensor, output_type: str = "np", **kwargs: Any) -> Any:
        """Decoded videos (videos, channels, frames, height, width) as ``"np"``, ``"pt"`` or ``"pil"``.

        They are (videos, frames, height, width, channels), (videos, frames, channels, height, width), or a list of
        frames for each video.
        """
        if output_type not in ("np", "pt", "pil"):
            raise InputError(f"output_type of a video must be 'np', 'pt' or 'pil', not {output_type!r}.")
        clips = [self.postprocess(one, output_type, **kwargs) for one in video.transpose(1, 2)]
        return presentation.stacked(clips, output_type)

    @staticmethod
    def classify_height_width_bin(height: int, width: int, ratios: Mapping[str, Any]) -> tuple[int, int]:
        """Of the sizes by their proportion (height / width), that whose proportion is nearest."""
        nearest = min(ratios, key=lambda ratio: abs(float(ratio) - height / width))
        high, wide = ratios[nearest]
        return int(high), int(wide)

    @staticmethod
    def resize_and_crop_tensor(samples: torch.Tensor, new_width: int, new_height: int) -> torch.Tensor:
        """Videos (videos, channels, frames, height, width) scaled to cover the size, and cut to it about the middle."""
        frames, height, width = samples.shape[2:]
        if (height, width) == (new_height, new_width):
            return samples
        ratio = max(new_height / height, new_width / width)
        size = int(height * ratio), int(width * ratio)
        scaled = torch.nn.functional.interpolate(
            together(samples), size=size, mode="bilinear", align_corners=False
        )
        top, left = (size[0] - new_height) // 2, (size[1] - new_width) // 2
        return apart(scaled[:, :, top : top + new_height, left : left + new_width], frames)
