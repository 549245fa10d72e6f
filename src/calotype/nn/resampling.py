"""Twice as large and half as large: by convolution, by pooling, and by a binomial filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.replaceable import replaceable

Boundary = Literal["zeros", "reflect"]


def _check_channels(x: torch.Tensor, channels: int, module: str) -> None:
    if x.shape[1] != channels:
        raise InputError(
            f"{module} was made for {channels} channels and got an input of shape {tuple(x.shape)}."
        )


class Upsample2D(nn.Module):
    """Nearest-neighbour doubling and an optional 3x3 convolution (or one transposed 4x4 convolution).

    ``output_size`` of the call is the (height, width) wanted where twice the input is not it.
    """

    def __init__(
        self,
        channels: int,
        use_conv: bool = False,
        use_conv_transpose: bool = False,
        out_channels: int | None = None,
        kernel_size: int | None = None,
        padding: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.use_conv_transpose = use_conv_transpose
        self.conv: nn.Module | None = None
        out_channels = out_channels or channels
        if use_conv_transpose:
            self.conv = nn.ConvTranspose2d(channels, out_channels, kernel_size or 4, 2, padding, bias=bias)
        elif use_conv:
            self.conv = nn.Conv2d(channels, out_channels, kernel_size or 3, padding=padding, bias=bias)

    @replaceable
    def forward(self, x: torch.Tensor, output_size: Sequence[int] | None = None) -> torch.Tensor:
        _check_channels(x, self.channels, "Upsample2D")
        if self.use_conv_transpose:
            assert self.conv is not None
            return self.conv(x)
        if output_size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=tuple(output_size), mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample2D(nn.Module):
    """A 3x3 convolution of stride 2, or the mean of 2x2 pixels without ``use_conv``.

    With ``padding=0`` the convolution sees one row and column of zeros at the bottom and the right, as the
    autoencoders of latent diffusion were trained.
    """

    def __init__(
        self,
        channels: int,
        use_conv: bool = False,
        out_channels: int | None = None,
        padding: int = 1,
        kernel_size: int = 3,
        bias: bool = True,
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        if not use_conv and out_channels != channels:
            raise InputError(
                f"Downsample2D by pooling keeps its {channels} channels and cannot make {out_channels}: "
                f"set use_conv=True."
            )
        self.channels = channels
        self.asymmetric = use_conv and padding == 0
        self.conv: nn.Module = (
            nn.Conv2d(channels, out_channels, kernel_size, stride=2, padding=padding, bias=bias)
            if use_conv
            else nn.AvgPool2d(kernel_size=2, stride=2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _check_channels(x, self.channels, "Downsample2D")
        if self.asymmetric:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


def _binomial_kernel(x: torch.Tensor, gain: float) -> torch.Tensor:
    """[1 3 3 1] ⊗ [1 3 3 1], summing to ``gain``, once for each channel of ``x``."""
    taps = torch.ones(4, device=x.device)
    taps[1:3] = 3.0  # filled there rather than sent there, which would wait for the device
    taps = taps / 8
    kernel = (gain * torch.outer(taps, taps)).to(x.dtype)
    return kernel.expand(x.shape[1], 1, 4, 4)


def fir_downsample(x: torch.Tensor, boundary: Boundary = "zeros") -> torch.Tensor:
    """Low-pass filter, then every second pixel: (batch, channels, h, w) -> (batch, channels, h/2, w/2).

    https://arxiv.org/abs/1904.11486
    """
    kernel = _binomial_kernel(x, gain=1.0)
    if boundary == "reflect":
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])
    return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def fir_upsample(x: torch.Tensor, boundary: Boundary = "zeros") -> torch.Tensor:
    """Zeros between pixels, then a low-pass filter: (batch, channels, h, w) -> (batch, channels, 2h, 2w)."""
    kernel = _binomial_kernel(x, gain=4.0)
    if boundary == "reflect":
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv_transpose2d(x, kernel, stride=2, padding=3, groups=x.shape[1])
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class FirDownsample(nn.Module):
    """:func:`fir_downsample` as a module without weights."""

    def __init__(self, boundary: Boundary) -> None:
        super().__init__()
        self.boundary: Boundary = boundary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fir_downsample(x, self.boundary)


class FirUpsample(nn.Module):
    """:func:`fir_upsample` as a module without weights."""

    def __init__(self, boundary: Boundary) -> None:
        super().__init__()
        self.boundary: Boundary = boundary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fir_upsample(x, self.boundary)
