"""The decoder of Stable Video Diffusion's autoencoder: each layer works on the frames, then along time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from calotype.core.frames import apart, together
from calotype.models.vae import EPS, Blocks, Checkpointed
from calotype.nn.resampling import Upsample2D
from calotype.nn.spatio_temporal import SpatioTemporalResnet

_GROUPS = 32
_TEMPORAL_EPS = 1e-5


class TemporalStage(nn.Module):
    """Residual blocks with attention between the first ones, then a change of resolution."""

    def __init__(
        self,
        channels: Sequence[int],
        attentions: Sequence[nn.Module] = (),
        upsampler: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            SpatioTemporalResnet(
                before,
                after,
                groups=_GROUPS,
                eps=EPS,
                temporal_eps=_TEMPORAL_EPS,
                mix=0.0,
                mix_of_time=True,
            )
            for before, after in pairwise(channels)
        )
        self.attentions = nn.ModuleList(attentions)
        self.upsamplers = nn.ModuleList([] if upsampler is None else [upsampler])

    def forward(self, h: torch.Tensor, frames: int) -> torch.Tensor:
        """(videos·frames, channels, height, width) -> the stage's output."""
        first, *others = self.resnets
        h = first(h, frames=frames)
        if self.attentions:
            # released weights were trained with as many later blocks as attentions: what is beyond stays unused
            for attention, resnet in zip(self.attentions, others, strict=False):
                h = resnet(attention(h), frames=frames)
        else:
            for resnet in others:
                h = resnet(h, frames=frames)
        for upsampler in self.upsamplers:
            h = upsampler(h)
        return h


class TemporalDecoder(Checkpointed):
    """Latents of frames (videos·frames, in_channels, height, width) to frames (https://arxiv.org/abs/2311.15127)."""

    def __init__(
        self, in_channels: int, out_channels: int, block_out_channels: Sequence[int], layers_per_block: int
    ) -> None:
        super().__init__()
        blocks = Blocks(_GROUPS, "silu")
        widths = tuple(reversed(block_out_channels))
        self.conv_in = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1)
        self.mid_block = TemporalStage(
            [widths[0]] * (layers_per_block + 1), attentions=[blocks.attention(widths[0])]
        )
        self.up_blocks = nn.ModuleList(
            TemporalStage(
                [before] + [width] * (layers_per_block + 1),
                upsampler=None if index == len(widths) - 1 else Upsample2D(width, use_conv=True),
            )
            for index, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.conv_norm_out = blocks.norm(widths[-1])
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], out_channels, kernel_size=3, padding=1)
        self.time_conv_out = nn.Conv3d(out_channels, out_channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, z: torch.Tensor, frames: int) -> torch.Tensor:
        h = self.conv_in(z)
        for stage in (self.mid_block, *self.up_blocks):
            h = self._run(stage, h, frames)
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        return together(self.time_conv_out(apart(h, frames)))
