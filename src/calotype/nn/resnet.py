"""The residual convolution block of U-Nets and autoencoders."""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.nn.activations import activation
from calotype.nn.norms import AdaGroupNorm, SpatialNorm
from calotype.nn.replaceable import replaceable
from calotype.nn.resampling import Boundary, fir_downsample, fir_upsample

_TIME_NORMS = ("default", "scale_shift", "ada_group", "spatial")


class ResnetBlock2D(nn.Module):
    """norm, activation, convolution, twice, added to the input and divided by ``output_scale_factor``.

    The embedding ``temb`` (batch, temb_channels) enters by ``time_embedding_norm``:

    - ``"default"``: added between the convolutions (https://arxiv.org/abs/2006.11239);
    - ``"scale_shift"``: scales and shifts after the second norm (https://arxiv.org/abs/2105.05233);
    - ``"ada_group"``: scales and shifts in both norms;
    - ``"spatial"``: both norms read a feature map, which is then ``temb`` (:class:`SpatialNorm`).

    ``up`` or ``down`` changes the resolution of both branches before the first convolution, smoothed by a
    binomial filter if ``fir`` names its boundary. The input's branch gets a 1x1 convolution where the number
    of channels changes, or as ``use_in_shortcut`` says.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        dropout: float = 0.0,
        temb_channels: int | None = 512,
        groups: int = 32,
        groups_out: int | None = None,
        eps: float = 1e-6,
        non_linearity: str = "swish",
        skip_time_act: bool = False,
        time_embedding_norm: str = "default",
        output_scale_factor: float = 1.0,
        use_in_shortcut: bool | None = None,
        up: bool = False,
        down: bool = False,
        fir: Boundary | None = None,
        conv_shortcut_bias: bool = True,
        conv_2d_out_channels: int | None = None,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        final_channels = conv_2d_out_channels or out_channels
        if time_embedding_norm not in _TIME_NORMS:
            raise InputError(
                f"resnet_time_scale_shift {time_embedding_norm!r} is not known; it is one of "
                f"{', '.join(_TIME_NORMS)}."
            )
        if up and down:
            raise InputError("A ResnetBlock2D goes up or down, not both.")
        if fir is not None and fir not in get_args(Boundary):
            raise InputError(f"A filter's boundary is one of {get_args(Boundary)}, not {fir!r}.")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.time_embedding_norm = time_embedding_norm
        self.skip_time_act = skip_time_act
        self.output_scale_factor = output_scale_factor
        self.up, self.down, self.fir = up, down, fir

        def norm(channels: int, n_groups: int) -> nn.Module:
            if time_embedding_norm == "ada_group":
                assert temb_channels is not None
                return AdaGroupNorm(temb_channels, channels, n_groups, eps=eps)
            if time_embedding_norm == "spatial":
                assert temb_channels is not None
                return SpatialNorm(channels, temb_channels)
            return nn.GroupNorm(n_groups, channels, eps=eps)

        self.norm1 = norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time_emb_proj: nn.Linear | None = None
        if temb_channels is not None and time_embedding_norm in ("default", "scale_shift"):
            width = out_channels if time_embedding_norm == "default" else 2 * out_channels
            self.time_emb_proj = nn.Linear(temb_channels, width)
        self.norm2 = norm(out_channels, groups_out or groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, final_channels, kernel_size=3, padding=1)
        self.nonlinearity = activation(non_linearity)

        wants_shortcut = in_channels != final_channels if use_in_shortcut is None else use_in_shortcut
        self.conv_shortcut = (
            nn.Conv2d(in_channels, final_channels, kernel_size=1, bias=conv_shortcut_bias)
            if wants_shortcut
            else None
        )

    @replaceable
    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        h = self.norm1(x, temb) if self._conditional_norms else self.norm1(x)
        h = self.nonlinearity(h)
        if self.up or self.down:
            x, h = self._resample(x), self._resample(h)
        h = self.conv1(h)

        if self._conditional_norms:
            h = self.norm2(h, temb)
        elif self.time_embedding_norm == "scale_shift":
            scale, shift = self._projected(temb).chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            if temb is not None and self.time_emb_proj is not None:
                h = h + self._projected(temb)
            h = self.norm2(h)

        h = self.dropout(self.nonlinearity(h))  # by name, so that nothing else is held during the convolution
        h = self.conv2(h)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        h = x + h
        return h if self.output_scale_factor == 1.0 else h / self.output_scale_factor

    @property
    def _conditional_norms(self) -> bool:
        return self.time_embedding_norm in ("ada_group", "spatial")

    def _projected(self, temb: torch.Tensor | None) -> torch.Tensor:
        if temb is None or self.time_emb_proj is None:
            raise InputError("A ResnetBlock2D with time_embedding_norm='scale_shift' needs a time embedding.")
        if not self.skip_time_act:
            temb = self.nonlinearity(temb)
        return self.time_emb_proj(temb)[:, :, None, None]

    def _resample(self, x: torch.Tensor) -> torch.Tensor:
        if self.fir is not None:
            return fir_upsample(x, self.fir) if self.up else fir_downsample(x, self.fir)
        if self.up:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, kernel_size=2, stride=2)
