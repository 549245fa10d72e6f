"""The variational autoencoder of latent diffusion (https://arxiv.org/abs/2112.10752, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.random import Generators
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.gaussian import AutoencoderKLOutput, DiagonalGaussianDistribution
from calotype.models.modeling import ModelMixin
from calotype.models.tiling import AutoencoderMixin, overlapping_tiles
from calotype.models.vae import Decoder, DecoderOutput, Encoder


class AutoencoderKL(AdapterAccess, ModelMixin, AutoencoderMixin, AttentionAccess):
    """Pictures in [-1, 1] to a distribution over latents, and latents to pictures.

    A picture (batch, in_channels, h, w) becomes latents (batch, latent_channels, h/f, w/f) with ``f`` doubling for
    each block but the first. ``scaling_factor``, ``shift_factor``, ``latents_mean``, ``latents_std`` and
    ``force_upcast`` are for those who use the latents; the network itself does not apply them.
    """

    _supports_gradient_checkpointing = True
    _adapted_as = "vae"

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int | tuple[int, int] = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            in_channels=in_channels,
            out_channels=latent_channels,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            act_fn=act_fn,
            mid_block_add_attention=mid_block_add_attention,
        )
        self.decoder = Decoder(
            in_channels=latent_channels,
            out_channels=out_channels,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            act_fn=act_fn,
            mid_block_add_attention=mid_block_add_attention,
        )
        moments = 2 * latent_channels
        self.quant_conv = nn.Conv2d(moments, moments, kernel_size=1) if use_quant_conv else None
        self.post_quant_conv = (
            nn.Conv2d(latent_channels, latent_channels, kernel_size=1) if use_post_quant_conv else None
        )

        side = sample_size if isinstance(sample_size, int) else sample_size[0]
        self.tile_sample_min_size = side
        self.tile_latent_min_size = side // 2 ** (len(block_out_channels) - 1)
        self.tile_overlap_factor = 0.25

    # -- encoding and decoding ---------------------------------------------------------------------------------

    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The distribution over latents of pictures ``x`` (batch, in_channels, height, width) in [-1, 1]."""
        self._check(x, self.config.in_channels, "encode")
        large = max(x.shape[-2:]) > self.tile_sample_min_size
        moments = self._each(self._tiled_moments if self.use_tiling and large else self._moments, x)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: Generators = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Pictures of latents ``z`` (batch, latent_channels, height, width); ``generator`` is not used."""
        self._check(z, self.config.latent_channels, "decode")
        large = max(z.shape[-2:]) > self.tile_latent_min_size
        sample = self._each(self._tiled_picture if self.use_tiling and large else self._picture, z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Pictures encoded and decoded: through a sample of the latents, or their mode."""
        (posterior,) = self.encode(sample, return_dict=False)
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)

    def tiled_encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """As :meth:`encode`, in tiles whether or not tiling is enabled."""
        posterior = DiagonalGaussianDistribution(self._tiled_moments(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def tiled_decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """As :meth:`decode`, in tiles whether or not tiling is enabled."""
        sample = self._tiled_picture(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _moments(self, x: torch.Tensor) -> torch.Tensor:
        h = self.encoder(x)
        return h if self.quant_conv is None else self.quant_conv(h)

    def _picture(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def _tiled_moments(self, x: torch.Tensor) -> torch.Tensor:
        return self._tiles(self._moments, x, self.tile_sample_min_size, self.tile_latent_min_size)

    def _tiled_picture(self, z: torch.Tensor) -> torch.Tensor:
        return self._tiles(self._picture, z, self.tile_latent_min_size, self.tile_sample_min_size)

    def _tiles(
        self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, tile: int, out_tile: int
    ) -> torch.Tensor:
        return overlapping_tiles(function, x, tile, out_tile, self.tile_overlap_factor)

    def _check(self, x: torch.Tensor, channels: int, method: str) -> None:
        if x.ndim != 4 or x.shape[1] != channels:
            raise InputError(
                f"AutoencoderKL.{method} takes a tensor (batch, {channels}, height, width), not {tuple(x.shape)}."
            )
