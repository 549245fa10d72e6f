"""What scripts read off every pipeline that makes videos."""

from __future__ import annotations

from calotype.pipelines.pipeline import DiffusionPipeline
from calotype.video_processor import VideoProcessor


class WithVideos(DiffusionPipeline):
    """Base of the pipelines whose pictures are frames; abstract."""

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent, along one side."""
        return self.bound_family().scale_factor

    @property
    def video_processor(self) -> VideoProcessor:
        """Prepares videos for the autoencoder, and makes what it decodes into arrays or pictures."""
        return self.bound_family().video_processor
