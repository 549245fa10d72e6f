"""The autoencoder of Stable Video Diffusion: an encoder of pictures, and a decoder that knows of time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.random import Generators
from calotype.models.attention_access import AttentionAccess
from calotype.models.gaussian import AutoencoderKLOutput, DiagonalGaussianDistribution
from calotype.models.modeling import ModelMixin
from calotype.models.temporal_decoder import TemporalDecoder
from calotype.models.tiling import AutoencoderMixin, overlapping_tiles
from calotype.models.vae import DecoderOutput, Encoder


class AutoencoderKLTemporalDecoder(ModelMixin, AutoencoderMixin, AttentionAccess):
    """Pictures in [-1, 1] to a distribution over latents, and latents of successive frames to a video.

    A picture (batch, in_channels, h, w) becomes latents (batch, latent_channels, h/f, w/f) with ``f`` doubling for
    each block but the first (https://arxiv.org/abs/2311.15127). ``scaling_factor`` and ``force_upcast`` are for those
    who use the latents; the network itself does not apply them.
    """

    _supports_gradient_checkpointing = True

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        latent_channels: int = 4,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        force_upcast: float = True,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            in_channels=in_channels,
            out_channels=latent_channels,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
        )
        self.decoder = TemporalDecoder(latent_channels, out_channels, block_out_channels, layers_per_block)
        moments = 2 * latent_channels
        self.quant_conv = nn.Conv2d(moments, moments, kernel_size=1)

        self.tile_sample_min_size = sample_size
        self.tile_latent_min_size = sample_size // 2 ** (len(block_out_channels) - 1)
        self.tile_overlap_factor = 0.25

    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The distribution over latents of pictures ``x`` (batch, in_channels, height, width) in [-1, 1]."""
        self._check(x, self.config.in_channels, "encode")
        sizes = (self.tile_sample_min_size, self.tile_latent_min_size)
        moments = self._each(lambda item: self._tiled(self._moments, item, *sizes), x)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: torch.Tensor, num_frames: int, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Frames of latents ``z`` (batch·num_frames, latent_channels, height, width).

        With slicing one video is decoded at a time; fewer frames at once are the caller's choice, since neighbours
        in time are seen.
        """
        self._check(z, self.config.latent_channels, "decode")
        if num_frames < 1 or len(z) % num_frames:
            raise InputError(f"{len(z)} latents cannot be split into videos of {num_frames} frames.")
        sizes = (self.tile_latent_min_size, self.tile_sample_min_size)
        videos = z.split(num_frames) if self.use_slicing else (z,)
        frames = [self._tiled(lambda tile: self.decoder(tile, num_frames), part, *sizes) for part in videos]
        sample = frames[0] if len(frames) == 1 else torch.cat(frames)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
        num_frames: int = 1,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Frames encoded and decoded: through a sample of the latents, or their mode."""
        (posterior,) = self.encode(sample, return_dict=False)
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, num_frames, return_dict=return_dict)

    def _moments(self, x: torch.Tensor) -> torch.Tensor:
        return self.quant_conv(self.encoder(x))

    def _tiled(
        self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, tile: int, out_tile: int
    ) -> torch.Tensor:
        if not self.use_tiling or max(x.shape[-2:]) <= tile:
            return function(x)
        return overlapping_tiles(function, x, tile, out_tile, self.tile_overlap_factor)

    def _check(self, x: torch.Tensor, channels: int, method: str) -> None:
        if x.ndim != 4 or x.shape[1] != channels:
            raise InputError(
                f"AutoencoderKLTemporalDecoder.{method} takes a tensor (batch, {channels}, height, width), not "
                f"{tuple(x.shape)}."
            )
