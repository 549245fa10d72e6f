"""What pipelines return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from calotype.core.outputs import BaseOutput

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image


@dataclass
class ImagePipelineOutput(BaseOutput):
    """Pictures: a list of PIL images, an array (batch, height, width, channels) or a tensor (batch, channels, …)."""

    images: list[Image] | np.ndarray | torch.Tensor


@dataclass
class StableDiffusionXLPipelineOutput(BaseOutput):
    """Pictures: a list of PIL images, an array (batch, height, width, channels) or a tensor (batch, channels, …)."""

    images: list[Image] | np.ndarray | torch.Tensor


@dataclass
class StableDiffusionPipelineOutput(BaseOutput):
    """Pictures, and which of them the safety checker blanked (``None`` without a checker)."""

    images: list[Image] | np.ndarray | torch.Tensor
    nsfw_content_detected: list[bool] | None

    def to_tuple(self) -> tuple[object, ...]:
        """Both fields, the second also where it is ``None``."""
        return self.images, self.nsfw_content_detected


@dataclass
class AnimateDiffPipelineOutput(BaseOutput):
    """Videos: an array (videos, frames, height, width, channels), a tensor (videos, frames, channels, …) or lists."""

    frames: torch.Tensor | np.ndarray | list[list[Image]]


@dataclass
class TextToVideoSDPipelineOutput(BaseOutput):
    """Videos: an array (videos, frames, height, width, channels), a tensor (videos, frames, channels, …) or lists."""

    frames: torch.Tensor | np.ndarray | list[list[Image]]


@dataclass
class TextToVideoPipelineOutput(BaseOutput):
    """The frames of one video, and which of them the safety checker blanked (``None`` without a checker)."""

    images: list[Image] | np.ndarray | torch.Tensor
    nsfw_content_detected: list[bool] | None

    def to_tuple(self) -> tuple[object, ...]:
        """Both fields, the second also where it is ``None``."""
        return self.images, self.nsfw_content_detected


@dataclass
class TextToVideoSDXLPipelineOutput(BaseOutput):
    """The frames of one video: an array (frames, height, width, channels), a tensor (frames, …) or a list."""

    images: list[Image] | np.ndarray | torch.Tensor


@dataclass
class StableVideoDiffusionPipelineOutput(BaseOutput):
    """Videos: an array (videos, frames, height, width, channels), a tensor (videos, frames, channels, …) or lists."""

    frames: list[list[Image]] | np.ndarray | torch.Tensor


@dataclass
class I2VGenXLPipelineOutput(BaseOutput):
    """Videos: an array (videos, frames, height, width, channels), a tensor (videos, frames, channels, …) or lists."""

    frames: torch.Tensor | np.ndarray | list[list[Image]]


@dataclass
class KandinskyPriorPipelineOutput(BaseOutput):
    """Embeddings of pictures to show and to steer away from, both (batch, channels)."""

    image_embeds: torch.Tensor | np.ndarray
    negative_image_embeds: torch.Tensor | np.ndarray
