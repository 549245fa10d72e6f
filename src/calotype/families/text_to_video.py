"""ModelScope's text-to-video (arXiv:2308.06571) and Zeroscope: CLIP text, a UNet on the latents of all frames at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calotype.diffusion.family import component
from calotype.diffusion.frame_by_frame import FrameByFrame
from calotype.families.stable_diffusion import StableDiffusionFamily

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

    from calotype.models.autoencoder_kl import AutoencoderKL
    from calotype.models.unet_3d_condition import UNet3DConditionModel
    from calotype.schedulers.scheduler import SchedulerMixin


@dataclass(frozen=True)
class TextToVideo(StableDiffusionFamily):
    """The family bound to its components; its latents are (videos, channels, frames, height, width)."""

    vae: AutoencoderKL = component()
    text_encoder: CLIPTextModel = component()
    tokenizer: CLIPTokenizer = component()
    unet: UNet3DConditionModel = component()  # type: ignore[assignment]
    scheduler: SchedulerMixin = component()

    @property
    def solver(self) -> Any:
        return FrameByFrame(self.scheduler)
