"""The tiny autoencoder distilled from that of latent diffusion (TAESD, https://github.com/madebyollin/taesd)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.core.random import Generators
from calotype.models.modeling import ModelMixin
from calotype.models.tiling import AutoencoderMixin, TileFunction, painted_tiles
from calotype.models.vae import DecoderOutput
from calotype.nn.activations import activation


@dataclass
class AutoencoderTinyOutput(BaseOutput):
    """``latents``: encoded pictures (batch, latent_channels, height, width)."""

    latents: torch.Tensor


class AutoencoderTinyBlock(nn.Module):
    """Three convolutions with activations between, added to the input and rectified."""

    def __init__(self, channels: int, act_fn: str) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(channels, channels),
            activation(act_fn),
            _conv(channels, channels),
            activation(act_fn),
            _conv(channels, channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) + x)


def _conv(channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, stride=stride, bias=bias)


class _Layers(nn.Module):
    """A chain of layers whose activations may be recomputed in training."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., torch.Tensor] | None = None

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and self._gradient_checkpointing_func and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.layers, x)
        return self.layers(x)


class EncoderTiny(_Layers):
    """Pictures in [-1, 1] to latents, halved before each stage but the first."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: Sequence[int], width: int, act_fn: str
    ) -> None:
        layers: list[nn.Module] = []
        for stage, count in enumerate(num_blocks):
            entry = _conv(in_channels, width) if stage == 0 else _conv(width, width, stride=2, bias=False)
            layers += [entry, *(AutoencoderTinyBlock(width, act_fn) for _ in range(count))]
        super().__init__([*layers, _conv(width, out_channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run((x + 1) / 2)


class DecoderTiny(_Layers):
    """Latents, softly clamped to [-3, 3], to pictures in about [-1, 1], enlarged after each stage but the last."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: Sequence[int],
        width: int,
        upsampling_scaling_factor: int,
        act_fn: str,
        upsample_fn: str,
    ) -> None:
        layers: list[nn.Module] = [_conv(in_channels, width), activation(act_fn)]
        for stage, count in enumerate(num_blocks):
            layers += [AutoencoderTinyBlock(width, act_fn) for _ in range(count)]
            if stage == len(num_blocks) - 1:
                layers.append(_conv(width, out_channels))
            else:
                layers.append(nn.Upsample(scale_factor=upsampling_scaling_factor, mode=upsample_fn))
                layers.append(_conv(width, width, bias=False))
        super().__init__(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(torch.tanh(x / 3) * 3) * 2 - 1


class AutoencoderTiny(ModelMixin, AutoencoderMixin):
    """Pictures in [-1, 1] to latents and back, with a small network and no distribution.

    All stages have one width, which both ``..._block_out_channels`` repeat. ``scale_latents`` and
    ``unscale_latents`` map latents to [0, 1] and back, for storing them as pictures.
    """

    _supports_gradient_checkpointing = True
    derived_in_config: ClassVar[tuple[str, ...]] = ("block_out_channels",)

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: int = 4,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3),
        num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1),
        latent_magnitude: float = 3,
        latent_shift: float = 0.5,
        force_upcast: bool = False,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = EncoderTiny(
            in_channels,
            latent_channels,
            num_encoder_blocks,
            _width("encoder", encoder_block_out_channels, num_encoder_blocks),
            act_fn,
        )
        self.decoder = DecoderTiny(
            latent_channels,
            out_channels,
            num_decoder_blocks,
            _width("decoder", decoder_block_out_channels, num_decoder_blocks),
            upsampling_scaling_factor,
            act_fn,
            upsample_fn,
        )
        self.latent_magnitude = latent_magnitude
        self.latent_shift = latent_shift
        self.scaling_factor = scaling_factor

        self._reduction = 2 ** (len(num_encoder_blocks) - 1)
        self._enlargement = upsampling_scaling_factor ** (len(num_decoder_blocks) - 1)
        self.spatial_scale_factor = self._enlargement
        self.tile_overlap_factor = 0.125
        self.tile_sample_min_size = 512
        self.tile_latent_min_size = self.tile_sample_min_size // self._enlargement
        # pipelines read these from any autoencoder
        self.register_to_config(block_out_channels=decoder_block_out_channels, force_upcast=False)

    def scale_latents(self, x: torch.Tensor) -> torch.Tensor:
        """Latents to [0, 1]; what lies outside ``latent_magnitude`` is clamped."""
        return (x / (2 * self.latent_magnitude) + self.latent_shift).clamp(0, 1)

    def unscale_latents(self, x: torch.Tensor) -> torch.Tensor:
        """[0, 1] to latents."""
        return (x - self.latent_shift) * (2 * self.latent_magnitude)

    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderTinyOutput | tuple[torch.Tensor]:
        """Latents of pictures ``x`` (batch, in_channels, height, width) in [-1, 1]."""
        self._check(x, self.config.in_channels, "encode")
        tile, scale = self.tile_sample_min_size, Fraction(1, self._reduction)
        latents = self._each(self._tiled(self.encoder, tile, scale) if self.use_tiling else self.encoder, x)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self, x: torch.Tensor, generator: Generators = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Pictures of latents ``x`` (batch, latent_channels, height, width); ``generator`` is not used."""
        self._check(x, self.config.latent_channels, "decode")
        tile, scale = self.tile_latent_min_size, Fraction(self._enlargement)
        sample = self._each(self._tiled(self.decoder, tile, scale) if self.use_tiling else self.decoder, x)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Pictures encoded, rounded to the 256 levels of a stored picture, and decoded."""
        (latents,) = self.encode(sample, return_dict=False)
        stored = (self.scale_latents(latents) * 255).round() / 255
        return self.decode(self.unscale_latents(stored), return_dict=return_dict)

    def _tiled(self, function: TileFunction, tile: int, scale: Fraction) -> TileFunction:
        # a tile that starts between two cells of the result would be shifted by a fraction of one
        cell = scale.denominator
        tile = max(tile // cell, 2) * cell
        step = max((tile - int(tile * self.tile_overlap_factor)) // cell, 1) * cell
        return lambda x: painted_tiles(function, x, tile=tile, step=step, scale=scale)

    def _check(self, x: torch.Tensor, channels: int, method: str) -> None:
        if x.ndim != 4 or x.shape[1] != channels:
            raise InputError(
                f"AutoencoderTiny.{method} takes a tensor (batch, {channels}, height, width), not {tuple(x.shape)}."
            )


def _width(half: str, channels: Sequence[int], blocks: Sequence[int]) -> int:
    """The one width of all stages."""
    if len(channels) != len(blocks) or not channels:
        raise InputError(
            f"{half}_block_out_channels has {len(channels)} entries and num_{half}_blocks {len(blocks)}; they must "
            f"be as many."
        )
    if len(set(channels)) > 1:
        raise InputError(f"{half}_block_out_channels={tuple(channels)} must repeat one width for all stages.")
    return channels[0]
