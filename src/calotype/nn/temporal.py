"""What works along time in a U-Net for videos, whose frames otherwise stand in the batch as pictures do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from calotype.core.frames import apart, together
from calotype.nn.transformer import BasicTransformerBlock
from calotype.nn.windows import Windows


class TemporalConvolution(nn.Module):
    """Four convolutions over three frames each, added to the input (https://arxiv.org/abs/2308.06571).

    The last one begins as zero, so that a U-Net for pictures is where training starts.
    """

    def __init__(self, channels: int, dropout: float = 0.1, groups: int = 32) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Sequential(
                nn.GroupNorm(groups, channels),
                nn.SiLU(),
                *([nn.Dropout(dropout)] if place else []),
                nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)),
            )
            for place in range(4)
        )
        for parameter in self.conv4[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: torch.Tensor, frames: int, kwargs: dict[str, Any] | None = None) -> torch.Tensor:
        """(videos·frames, channels, height, width) -> the same."""
        video = apart(h, frames)
        change = self.conv4(self.conv3(self.conv2(self.conv1(video))))
        return together(video + change)


class TemporalTransformer(nn.Module):
    """Transformer blocks along time for each pixel, between two projections, added to the map.

    Both attentions of a block are among the frames (or the only one, without ``twice``), of which with ``positions``
    there are so many at most.
    """

    def __init__(
        self,
        num_attention_heads: int,
        attention_head_dim: int,
        in_channels: int,
        num_layers: int = 1,
        norm_num_groups: int = 32,
        positions: int | None = None,
        twice: bool = True,
    ) -> None:
        super().__init__()
        inner = num_attention_heads * attention_head_dim
        self.norm = nn.GroupNorm(norm_num_groups, in_channels, eps=1e-6)
        self.proj_in = nn.Linear(in_channels, inner)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner,
                num_attention_heads,
                attention_head_dim,
                double_self_attention=twice,
                positions=positions,
            )
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(inner, in_channels)

    def forward(
        self,
        h: torch.Tensor,
        frames: int,
        kwargs: dict[str, Any] | None = None,
        windows: Windows | None = None,
    ) -> torch.Tensor:
        """(videos·frames, channels, height, width) -> the same; ``kwargs`` reach the attention processors.

        With ``windows`` attention is among the frames of one window at a time.
        """
        given = {**(kwargs or {}), **({} if windows is None else {"windows": windows})}
        normed = self.norm(apart(h, frames))
        videos, _, _, height, width = normed.shape
        tokens = self.proj_in(normed.permute(0, 3, 4, 2, 1).flatten(0, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, cross_attention_kwargs=given)
        change = self.proj_out(tokens).unflatten(0, (videos, height, width)).permute(0, 3, 4, 1, 2)
        return h + change.flatten(0, 1)
