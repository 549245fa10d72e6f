"""T2I-Adapter: features of a picture for the stages of a U-Net, computed once (https://arxiv.org/abs/2302.08453)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.errors import InputError
from calotype.models.control_encoder import check_counts
from calotype.models.model_group import ModelGroup
from calotype.models.modeling import ModelMixin


class _Residual(nn.Module):
    """Two convolutions with a rectifier between, added to the input."""

    def __init__(self, channels: int, last_kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, kernel_size=last_kernel, padding=last_kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block2(F.relu(self.block1(x)))


class _Block(nn.Module):
    """Residual blocks at one resolution, after halving it (sides rounded up) on request.

    A light block works at a quarter of its output's width; the others change the width only where they must.
    """

    def __init__(self, channels: int, out_channels: int, count: int, *, down: bool, light: bool) -> None:
        super().__init__()
        width = out_channels // 4 if light else out_channels
        self.down = down
        self.in_conv = nn.Conv2d(channels, width, kernel_size=1) if light or channels != width else None
        self.resnets = nn.Sequential(*[_Residual(width, 3 if light else 1) for _ in range(count)])
        self.out_conv = nn.Conv2d(width, out_channels, kernel_size=1) if light else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.down:
            x = F.avg_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        x = self.resnets(x)
        return x if self.out_conv is None else self.out_conv(x)


@dataclass(frozen=True)
class _Kind:
    """What distinguishes an adapter type: its blocks as (width in, width out, halves), and by how much all halve."""

    light: bool
    blocks: tuple[tuple[int, int, bool], ...]
    reduction: int


def _kind(name: str, channels: Sequence[int], in_channels: int) -> _Kind:
    widths = [in_channels if name == "light_adapter" else channels[0], *channels]
    steps = list(pairwise(widths))
    count = len(channels)
    if name == "full_adapter":
        blocks = tuple((first, then, index > 0) for index, (first, then) in enumerate(steps))
        return _Kind(False, blocks, 2 ** (count - 1))
    if (
        name == "full_adapter_xl"
    ):  # whose U-Net has three stages, the second at half the first one's resolution
        return _Kind(False, tuple((first, then, index == 2) for index, (first, then) in enumerate(steps)), 2)
    if name == "light_adapter":
        steps.append((channels[-1], channels[-1]))
        blocks = tuple((first, then, index > 0) for index, (first, then) in enumerate(steps))
        return _Kind(True, blocks, 2**count)
    raise InputError(f"adapter_type is 'full_adapter', 'full_adapter_xl' or 'light_adapter', not {name!r}.")


class _Adapter(nn.Module):
    """Pixels folded into channels, then a chain of blocks whose outputs are the features."""

    def __init__(self, in_channels: int, kind: _Kind, count: int, downscale_factor: int) -> None:
        super().__init__()
        folded, first = in_channels * downscale_factor**2, kind.blocks[0][0]
        self.downscale_factor = downscale_factor
        self.conv_in = None if kind.light else nn.Conv2d(folded, first, kernel_size=3, padding=1)
        self.body = nn.ModuleList(
            _Block(channels, out_channels, count, down=down, light=kind.light)
            for channels, out_channels, down in kind.blocks
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        h = F.pixel_unshuffle(x, self.downscale_factor)
        if self.conv_in is not None:
            h = self.conv_in(h)
        features = []
        for block in self.body:
            h = block(h)
            features.append(h)
        return features


class T2IAdapter(ModelMixin):
    """A small network that makes of a picture one feature map for each stage of a U-Net's way down.

    ``downscale_factor`` is how many times the first feature is smaller than the picture, ``channels`` are the features'
    widths, ``num_res_blocks`` the residual blocks for each. ``adapter_type`` is ``"full_adapter"`` (SD 1 and 2),
    ``"full_adapter_xl"`` (SDXL, which halves the resolution once only) or ``"light_adapter"`` (narrow inside, with
    one feature more than ``channels``).
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: list[int] | tuple[int, ...] = (320, 640, 1280, 1280),
        num_res_blocks: int = 2,
        downscale_factor: int = 8,
        adapter_type: str = "full_adapter",
    ) -> None:
        super().__init__()
        if not channels:
            raise InputError("channels is empty: a T2IAdapter needs a width for each of its features.")
        if downscale_factor < 1:
            raise InputError(f"downscale_factor is at least 1, not {downscale_factor}.")
        kind = _kind(adapter_type, channels, in_channels * downscale_factor**2)
        self.adapter = _Adapter(in_channels, kind, num_res_blocks, downscale_factor)
        self.reduction = kind.reduction

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features (batch, channels[i], height / f, width / f) of a picture ``x`` (batch, in_channels, height, width).

        Both sides must be divisible by ``downscale_factor``.
        """
        channels, factor = self.config.in_channels, self.downscale_factor
        if x.ndim != 4 or x.shape[1] != channels:
            raise InputError(
                f"This T2IAdapter takes a tensor (batch, {channels}, height, width), not {tuple(x.shape)}."
            )
        if x.shape[2] % factor or x.shape[3] % factor:
            raise InputError(
                f"The adapter's picture has {tuple(x.shape[2:])} pixels, of which both must be divisible by {factor}."
            )
        return self.adapter(x)

    @property
    def downscale_factor(self) -> int:
        """How many times smaller than the picture the first feature is."""
        return self.adapter.downscale_factor

    @property
    def total_downscale_factor(self) -> int:
        """How many times smaller than the picture the last feature is."""
        return self.adapter.downscale_factor * self.reduction


class MultiAdapter(ModelGroup):
    """Several T2I-Adapters, ``adapters``, whose features are added with a weight for each."""

    _member_class = T2IAdapter
    _members_name = "adapters"
    _supports_gradient_checkpointing = False
    adapters: nn.ModuleList

    def __init__(self, adapters: list[T2IAdapter] | tuple[T2IAdapter, ...]) -> None:
        super().__init__(adapters)
        if len(adapters) == 1:
            raise InputError("A MultiAdapter is made of at least two adapters; use the T2IAdapter itself.")
        factors = [(adapter.downscale_factor, adapter.total_downscale_factor) for adapter in adapters]
        if len(set(factors)) > 1:
            raise InputError(
                f"The adapters differ in downscale_factor and total_downscale_factor, {factors}, so their features "
                f"cannot be added."
            )
        self.num_adapter = len(adapters)
        self.downscale_factor, self.total_downscale_factor = factors[0]

    def forward(
        self, xs: list[torch.Tensor] | torch.Tensor, adapter_weights: list[float] | None = None
    ) -> list[torch.Tensor]:
        """The weighted sum of the adapters' features; ``xs`` has a picture for each adapter.

        Without ``adapter_weights`` it is their mean.
        """
        count = self.num_adapter
        weights = [1 / count] * count if adapter_weights is None else adapter_weights
        check_counts(count, "adapters", xs=xs, adapter_weights=weights)
        total: list[torch.Tensor] | None = None
        for adapter, x, weight in zip(self.adapters, xs, weights, strict=True):
            features = [weight * feature for feature in adapter(x)]
            total = features if total is None else [a + b for a, b in zip(total, features, strict=True)]
        assert total is not None
        return total
