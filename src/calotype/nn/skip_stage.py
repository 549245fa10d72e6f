"""The stages of NCSN++: beside the features they carry a picture down and up (https://arxiv.org/abs/2011.13456)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from calotype.nn.resampling import FirDownsample, FirUpsample


class SkipDownStage(nn.Module):
    """Layers at one resolution; then the picture is filtered to half of it and added to the features."""

    def __init__(
        self,
        resnets: Sequence[nn.Module],
        attentions: Sequence[nn.Module],
        resnet_down: nn.Module | None,
        out_channels: int,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.has_attention = bool(attentions)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        self.resnet_down = resnet_down
        self.downsamplers: nn.ModuleList | None = None
        self.skip_conv: nn.Conv2d | None = None
        if resnet_down is not None:
            self.downsamplers = nn.ModuleList([FirDownsample("zeros")])
            self.skip_conv = nn.Conv2d(3, out_channels, kernel_size=1)

    def forward(
        self, h: torch.Tensor, picture: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Features and picture (batch, 3, height, width) -> features, what is kept for the way up, picture."""
        kept: list[torch.Tensor] = []
        for index, resnet in enumerate(self.resnets):
            h = resnet(h, temb)
            if self.has_attention:
                h = self.attentions[index](h)
            kept.append(h)
        if self.resnet_down is not None and self.downsamplers is not None and self.skip_conv is not None:
            picture = self.downsamplers[0](picture)
            h = self.skip_conv(picture) + self.resnet_down(h, temb)
            kept.append(h)
        return h, kept, picture


class SkipUpStage(nn.Module):
    """Layers that read what was kept, one attention, then the picture grows and receives the features."""

    def __init__(
        self,
        resnets: Sequence[nn.Module],
        attentions: Sequence[nn.Module],
        resnet_up: nn.Module | None,
        out_channels: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.has_attention = bool(attentions)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        self.upsampler = FirUpsample("zeros")
        self.resnet_up = resnet_up
        self.skip_norm: nn.GroupNorm | None = None
        self.skip_conv: nn.Conv2d | None = None
        if resnet_up is not None:
            self.skip_norm = nn.GroupNorm(min(out_channels // 4, 32), out_channels, eps=eps)
            self.skip_conv = nn.Conv2d(out_channels, 3, kernel_size=3, padding=1)
        self.act = nn.SiLU()

    def forward(
        self,
        h: torch.Tensor,
        kept: Sequence[torch.Tensor],
        picture: torch.Tensor | None,
        temb: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features, the way down's features and the picture so far -> features and picture."""
        for index, resnet in enumerate(self.resnets):
            h = resnet(torch.cat([h, kept[-1 - index]], dim=1), temb)
        if self.has_attention:
            h = self.attentions[0](h)
        if picture is not None:
            picture = self.upsampler(picture)
        if self.resnet_up is not None and self.skip_norm is not None and self.skip_conv is not None:
            drawn = self.skip_conv(self.act(self.skip_norm(h)))
            picture = drawn if picture is None else picture + drawn
            h = self.resnet_up(h, temb)
        return h, picture
