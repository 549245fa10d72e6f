"""ModelScope's text-to-video (arXiv:2308.06571) and Zeroscope: CLIP text, a UNet on the latents of all frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calotype.diffusion.family import component
from calotype.diffusion.frame_by_frame import FrameByFrame
from calotype.families.stable_diffusion import StableDiffusionFamily
from calotype.video_processor import VideoProcessor

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

    @property
    def video_processor(self) -> VideoProcessor:
        """Takes videos in the size that they have; what the latents do not divide the autoencoder cuts off."""
        return VideoProcessor(
            do_resize=False,
            vae_scale_factor=self.scale_factor,
            vae_latent_channels=self.latent_channels,
            do_convert_rgb=True,
        )
