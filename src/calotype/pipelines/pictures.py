"""What scripts read off every pipeline whose latents are pictures: its scale and its processors."""

from __future__ import annotations

from calotype.diffusion.controls.network import picture_processor
from calotype.image_processor import VaeImageProcessor
from calotype.pipelines.adapters import Adapters
from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.pipelines.textual_inversion import LearnedWords


class PicturePipeline(Adapters, LearnedWords, DiffusionPipeline):
    """Base of the pipelines that make pictures from latents; abstract."""

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent, along one side."""
        return self.bound_family().scale_factor

    @property
    def image_processor(self) -> VaeImageProcessor:
        """Prepares pictures for the autoencoder, and puts what was made back over what is kept."""
        return self.bound_family().image_processor

    @property
    def mask_processor(self) -> VaeImageProcessor:
        """Prepares masks: one channel, 0 or 1."""
        return self.bound_family().mask_processor

    @property
    def control_image_processor(self) -> VaeImageProcessor:
        """Prepares control pictures: RGB in [0, 1]."""
        return picture_processor(self.vae_scale_factor)
