"""The convolutional encoder and decoder of latent diffusion's autoencoders (https://arxiv.org/abs/2112.10752)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.nn.attention import Attention
from calotype.nn.norms import SpatialNorm, activated_norm
from calotype.nn.resampling import Downsample2D, Upsample2D
from calotype.nn.resnet import ResnetBlock2D

EPS = 1e-6

_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
"""Block type -> whether attention follows each of its residual blocks."""


@dataclass
class DecoderOutput(BaseOutput):
    """``sample``: decoded pictures (batch, channels, height, width); ``commit_loss``: of vector quantisation."""

    sample: torch.Tensor
    commit_loss: torch.Tensor | None = None


class Stage(nn.Module):
    """Residual blocks, each followed by its attention if it has one, then a change of resolution."""

    def __init__(
        self,
        resnets: Iterable[nn.Module],
        attentions: Sequence[nn.Module] = (),
        *,
        downsampler: nn.Module | None = None,
        upsampler: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList([] if downsampler is None else [downsampler])
        self.upsamplers = nn.ModuleList([] if upsampler is None else [upsampler])

    def forward(self, x: torch.Tensor, zq: torch.Tensor | None = None) -> torch.Tensor:
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, zq)
            if attention is not None:
                x = attention(x, temb=zq)
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x)
        return x


@dataclass(frozen=True)
class Blocks:
    """Makes the parts of a stage: what all stages of one network have in common."""

    groups: int
    act_fn: str
    zq_channels: int | None = None  # with it, norms are conditioned on the latent: MoVQ

    def resnet(self, channels: int, out_channels: int) -> ResnetBlock2D:
        return ResnetBlock2D(
            in_channels=channels,
            out_channels=out_channels,
            temb_channels=self.zq_channels,
            groups=self.groups,
            eps=EPS,
            non_linearity=self.act_fn,
            time_embedding_norm="default" if self.zq_channels is None else "spatial",
        )

    def attention(self, channels: int) -> Attention:
        return Attention(
            channels,
            heads=1,
            dim_head=channels,
            eps=EPS,
            norm_num_groups=self.groups if self.zq_channels is None else None,
            spatial_norm_dim=self.zq_channels,
            residual_connection=True,
            bias=True,
            upcast_softmax=True,
        )

    def norm(self, channels: int) -> nn.Module:
        if self.zq_channels is not None:
            return SpatialNorm(channels, self.zq_channels)
        return nn.GroupNorm(self.groups, channels, eps=EPS)

    def middle(self, channels: int, add_attention: bool) -> Stage:
        attentions = [self.attention(channels)] if add_attention else []
        return Stage([self.resnet(channels, channels) for _ in range(2)], attentions)

    def resnets(self, channels: int, out_channels: int, count: int) -> list[ResnetBlock2D]:
        return [self.resnet(channels if i == 0 else out_channels, out_channels) for i in range(count)]

    def attentions(self, channels: int, count: int) -> list[Attention]:
        return [self.attention(channels) for _ in range(count)]


class Checkpointed(nn.Module):
    """A chain of stages whose activations may be recomputed in training."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., torch.Tensor] | None = None

    def _run(self, stage: nn.Module, *args: torch.Tensor | int | None) -> torch.Tensor:
        if self.gradient_checkpointing and self._gradient_checkpointing_func and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(stage, *args)
        return stage(*args)


class Encoder(Checkpointed):
    """Pictures (batch, in_channels, height, width) to features, halved once for each block but the last.

    The result has ``2 * out_channels`` channels with ``double_z`` (means and log-variances), else ``out_channels``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        act_fn: str = "silu",
        double_z: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        _check("down_block_types", down_block_types, _DOWN, block_out_channels, norm_num_groups)
        blocks = Blocks(norm_num_groups, act_fn)
        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], kernel_size=3, padding=1)
        self.down_blocks = nn.ModuleList()
        before = block_out_channels[0]
        for i, (kind, channels) in enumerate(zip(down_block_types, block_out_channels, strict=True)):
            last = i == len(block_out_channels) - 1
            stage = Stage(
                blocks.resnets(before, channels, layers_per_block),
                blocks.attentions(channels, layers_per_block) if _DOWN[kind] else (),
                downsampler=None if last else Downsample2D(channels, use_conv=True, padding=0),
            )
            self.down_blocks.append(stage)
            before = channels
        self.mid_block = blocks.middle(before, mid_block_add_attention)
        self.conv_norm_out = blocks.norm(before)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(before, (1 + double_z) * out_channels, kernel_size=3, padding=1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(sample)
        for stage in (*self.down_blocks, self.mid_block):
            x = self._run(stage, x)
        return self.conv_out(activated_norm(x, self.conv_norm_out, self.conv_act))


class Decoder(Checkpointed):
    """Latents (batch, in_channels, height, width) to pictures, doubled once for each block but the last.

    With ``norm_type="spatial"`` every norm also reads ``latent_embeds``, the quantised latents.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        act_fn: str = "silu",
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        _check("up_block_types", up_block_types, _UP, block_out_channels, norm_num_groups)
        if norm_type not in ("group", "spatial"):
            raise InputError(f"norm_type={norm_type!r} is not one of 'group', 'spatial'.")
        blocks = Blocks(norm_num_groups, act_fn, in_channels if norm_type == "spatial" else None)
        before = block_out_channels[-1]
        self.conv_in = nn.Conv2d(in_channels, before, kernel_size=3, padding=1)
        self.mid_block = blocks.middle(before, mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
        for i, (kind, channels) in enumerate(zip(up_block_types, reversed(block_out_channels), strict=True)):
            last = i == len(block_out_channels) - 1
            stage = Stage(
                blocks.resnets(before, channels, layers_per_block + 1),
                blocks.attentions(channels, layers_per_block + 1) if _UP[kind] else (),
                upsampler=None if last else Upsample2D(channels, use_conv=True),
            )
            self.up_blocks.append(stage)
            before = channels
        self.conv_norm_out = blocks.norm(before)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(before, out_channels, kernel_size=3, padding=1)

    def forward(self, sample: torch.Tensor, latent_embeds: torch.Tensor | None = None) -> torch.Tensor:
        x = self.conv_in(sample)
        for stage in (self.mid_block, *self.up_blocks):
            x = self._run(stage, x, latent_embeds)
        if latent_embeds is None:
            x = activated_norm(x, self.conv_norm_out, self.conv_act)
        else:
            x = self.conv_act(self.conv_norm_out(x, latent_embeds))
        return self.conv_out(x)


def _check(
    argument: str, types: Sequence[str], known: dict[str, bool], channels: Sequence[int], groups: int
) -> None:
    """Refuses what no autoencoder can be made of."""
    for kind in types:
        if kind not in known:
            near = difflib.get_close_matches(kind, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the known ones are {', '.join(known)}."
            raise InputError(f"{argument} names {kind!r}, which is no block of an autoencoder; {hint}")
    if len(types) != len(channels):
        raise InputError(
            f"{argument} has {len(types)} entries and block_out_channels {len(channels)}; they must be as many."
        )
    if odd := [width for width in channels if width % groups]:
        raise InputError(f"block_out_channels has {odd[0]}, which norm_num_groups={groups} does not divide.")
