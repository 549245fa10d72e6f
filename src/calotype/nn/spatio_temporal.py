"""Layers of U-Nets and decoders that work on each frame, then along time, and mix both by a learned weight.

The mixing is that of https://arxiv.org/abs/2304.08818, the layers those of https://arxiv.org/abs/2311.15127. Frames
stand in the batch: of (videos·frames, …) so many ``frames`` in a row are a video. What a video is told, its time
embedding (videos, channels) and its context (videos, tokens, channels), has one row for all of its frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.frames import apart, together
from calotype.nn.attention import Attention
from calotype.nn.embeddings import TimestepEmbedding, Timesteps
from calotype.nn.feed_forward import FeedForward
from calotype.nn.resnet import ResnetBlock2D
from calotype.nn.transformer import BasicTransformerBlock

if TYPE_CHECKING:
    from calotype.nn.stage import Conditioning


def frames_of(h: torch.Tensor, told: torch.Tensor) -> int:
    """How many frames of ``h`` (videos·frames, …) each row of ``told`` (videos, …) is for."""
    if len(h) % len(told):
        raise InputError(f"{len(h)} frames cannot be split evenly among {len(told)} videos.")
    return len(h) // len(told)


class LearnedMix(nn.Module):
    """α·spatial + (1 - α)·temporal with α = σ(``mix_factor``); with ``of_time`` α is the weight of the temporal."""

    def __init__(self, start: float = 0.5, of_time: bool = False) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([start]))
        self.of_time = of_time

    def forward(self, spatial: torch.Tensor, temporal: torch.Tensor) -> torch.Tensor:
        weight = self.mix_factor.sigmoid()
        return torch.lerp(spatial, temporal, weight if self.of_time else 1 - weight)


class TemporalResnet(nn.Module):
    """norm, activation, convolution over three frames, twice, added to the input.

    The embedding ``temb`` (videos, temb_channels) is added between the convolutions.
    """

    def __init__(self, channels: int, temb_channels: int | None, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=eps)
        self.conv1 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.time_emb_proj = None if temb_channels is None else nn.Linear(temb_channels, channels)
        self.norm2 = nn.GroupNorm(groups, channels, eps=eps)
        self.conv2 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.nonlinearity = nn.SiLU()

    def forward(self, video: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """(videos, channels, frames, height, width) -> the same."""
        h = self.conv1(self.nonlinearity(self.norm1(video)))
        if temb is not None and self.time_emb_proj is not None:
            h = h + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None, None]
        h = self.nonlinearity(self.norm2(h))  # by name, so that nothing else is held during the convolution
        return video + self.conv2(h)


class SpatioTemporalResnet(nn.Module):
    """A residual block on each frame, then one along time, mixed."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int | None = None,
        groups: int = 32,
        eps: float = 1e-6,
        temporal_eps: float | None = None,
        mix: float = 0.5,
        mix_of_time: bool = False,
    ) -> None:
        super().__init__()
        self.spatial_res_block = ResnetBlock2D(
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=temb_channels,
            groups=groups,
            eps=eps,
        )
        self.temporal_res_block = TemporalResnet(out_channels, temb_channels, groups, temporal_eps or eps)
        self.time_mixer = LearnedMix(mix, mix_of_time)

    def forward(
        self, h: torch.Tensor, temb: torch.Tensor | None = None, frames: int | None = None
    ) -> torch.Tensor:
        """(videos·frames, channels, height, width) -> the same; ``frames`` follow from ``temb`` if that is given."""
        if frames is None:
            if temb is None:
                raise InputError(
                    "Neither a time embedding nor the number of frames says how long a video is."
                )
            frames = frames_of(h, temb)
        spatial = self.spatial_res_block(h, None if temb is None else temb.repeat_interleave(frames, dim=0))
        video = apart(spatial, frames)
        return together(self.time_mixer(video, self.temporal_res_block(video, temb)))


class TemporalTransformerBlock(nn.Module):
    """Feed-forward, attention among the frames, attention to the context, feed-forward, each added to its input."""

    def __init__(
        self, dim: int, num_attention_heads: int, attention_head_dim: int, cross_attention_dim: int | None
    ) -> None:
        super().__init__()

        def attention(context_dim: int | None) -> Attention:
            return Attention(
                dim, cross_attention_dim=context_dim, heads=num_attention_heads, dim_head=attention_head_dim
            )

        self.norm_in = nn.LayerNorm(dim)
        self.ff_in = FeedForward(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = attention(None)
        self.norm2: nn.LayerNorm | None = None
        self.attn2: Attention | None = None
        if cross_attention_dim is not None:
            self.norm2 = nn.LayerNorm(dim)
            self.attn2 = attention(cross_attention_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, h: torch.Tensor, frames: int, context: torch.Tensor | None = None) -> torch.Tensor:
        """(videos·frames, pixels, channels) -> the same; ``context`` is (videos, tokens, channels)."""
        pixels = h.shape[1]
        h = h.unflatten(0, (-1, frames)).transpose(1, 2)  # (videos, pixels, frames, channels)
        h = h + self.ff_in(self.norm_in(h))
        h = h + self.attn1(self.norm1(h).flatten(0, 1)).unflatten(0, (-1, pixels))
        if self.attn2 is not None and self.norm2 is not None:
            # a query's answer depends on no other query, so that a video's pixels can ask its context together
            h = h + self.attn2(self.norm2(h).flatten(1, 2), encoder_hidden_states=context).unflatten(
                1, (pixels, frames)
            )
        h = h + self.ff(self.norm3(h))
        return h.transpose(1, 2).flatten(0, 1)


class SpatioTemporalTransformer(nn.Module):
    """Pairs of a transformer block over a frame's pixels and one along time, mixed, between two projections.

    The blocks along time are told which frame is which by an embedding of its number.
    """

    def __init__(
        self,
        num_attention_heads: int,
        attention_head_dim: int,
        in_channels: int,
        num_layers: int = 1,
        cross_attention_dim: int | None = None,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        inner = num_attention_heads * attention_head_dim
        heads = (num_attention_heads, attention_head_dim)
        self.norm = nn.GroupNorm(norm_num_groups, in_channels, eps=1e-6)
        self.proj_in = nn.Linear(in_channels, inner)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, *heads, cross_attention_dim=cross_attention_dim)
            for _ in range(num_layers)
        )
        self.temporal_transformer_blocks = nn.ModuleList(
            TemporalTransformerBlock(inner, *heads, cross_attention_dim=cross_attention_dim)
            for _ in range(num_layers)
        )
        self.time_proj = Timesteps(in_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_pos_embed = TimestepEmbedding(in_channels, 4 * in_channels, out_dim=in_channels)
        self.time_mixer = LearnedMix()
        self.proj_out = nn.Linear(inner, in_channels)

    def forward(self, hidden_states: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """(videos·frames, channels, height, width) -> the same; ``context`` is (videos, tokens, channels)."""
        frames = frames_of(hidden_states, context)
        h = self.proj_in(self.norm(hidden_states).flatten(2).transpose(1, 2))
        numbers = torch.arange(frames, device=h.device)
        places = self.time_pos_embed(self.time_proj(numbers).to(h.dtype)).repeat(len(context), 1)[:, None]
        seen = context.repeat_interleave(frames, dim=0)
        for of_frame, of_time in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            h = of_frame(h, encoder_hidden_states=seen)
            h = self.time_mixer(h, of_time(h + places, frames, context))
        return self.proj_out(h).transpose(1, 2).unflatten(2, hidden_states.shape[2:]) + hidden_states


def attend_spatio_temporal(module: nn.Module, h: torch.Tensor, given: Conditioning) -> torch.Tensor:
    """A transformer within the frames and along time, which reads the context of whole videos."""
    return module(h, given.context)
