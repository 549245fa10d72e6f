"""The modules that stand in the lanes of a U-Net's stages, from a block's row and settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from calotype.core.errors import InputError
from calotype.nn.attention import Attention
from calotype.nn.k_attention import KAttentionBlock
from calotype.nn.resampling import Downsample2D, FirDownsample, Upsample2D
from calotype.nn.resnet import ResnetBlock2D
from calotype.nn.spatio_temporal import SpatioTemporalResnet, SpatioTemporalTransformer
from calotype.nn.stage import AlongTime
from calotype.nn.temporal import TemporalConvolution, TemporalTransformer
from calotype.nn.transformer import DualTransformer, SpatialTransformer


class Row(NamedTuple):
    """``attention``: None, pixels, transformer, spatio_temporal, added_kv or k; ``resampler``: conv, resnet, k or skip.

    ``time`` says what works along time: nothing, or convolutions and the attention after them (layers), or residual
    blocks that work on frames and along time (mixed), or attention that is told the frames' places (motion). ``eps`` is
    the norms' own, in place of the settings'.
    """

    attention: str | None
    resampler: str
    time: str | None = None
    eps: float | None = None


_K_GROUP_SIZE = 32  # channels in a norm's group, in k-diffusion's blocks


@dataclass(frozen=True)
class StageSettings:
    """What a block's layers have in common; the names are those of the configurations.

    ``heads`` counts the heads of transformers, ``head_dim`` is the width of the heads of all other attentions
    (None: one head). ``attn_groups`` are the groups of the norm before attention among pixels; None stands for
    ``groups``, 0 for no norm.
    """

    temb_channels: int | None = None
    dropout: float = 0.0
    eps: float = 1e-6
    act_fn: str = "silu"
    groups: int = 32
    attn_groups: int | None = None
    time_norm: str = "default"
    skip_time_act: bool = False
    output_scale_factor: float = 1.0
    heads: int = 1
    head_dim: int | None = None
    transformer_layers: int | Sequence[int] = 1
    cross_attention_dim: int | None = None
    cross_attention_norm: str | None = None
    only_cross_attention: bool = False
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    upcast_attention: bool = False
    attention_type: str = "default"
    downsample_padding: int = 1
    resample_type: str = "conv"
    motion_heads: int = 8
    motion_layers: int | Sequence[int] = 1
    motion_length: int = 32
    motion_twice: bool = True


def k_groups(channels: int) -> int:
    """The groups of a norm in k-diffusion's blocks."""
    return max(1, channels // _K_GROUP_SIZE)


def each_layer(depth: int | Sequence[int], layers: int, entry: str) -> list[int]:
    """How many transformer blocks each layer of a stage has, which ``entry`` of the configuration says."""
    if isinstance(depth, int):
        return [depth] * layers
    if len(depth) < layers:
        raise InputError(
            f"{entry} has {len(depth)} entries {tuple(depth)} for a block of {layers} layers: give one for each, or "
            f"one number for all."
        )
    return list(depth[:layers])


def make_resnet(
    row: Row,
    settings: StageSettings,
    in_channels: int,
    out_channels: int,
    up: bool = False,
    down: bool = False,
    final_channels: int | None = None,
    groups: int | None = None,
    groups_out: int | None = None,
) -> nn.Module:
    """A residual block; ``final_channels`` narrows its output, the norms' groups follow from the row if not given."""
    if row.time == "mixed":
        return SpatioTemporalResnet(
            in_channels, out_channels, settings.temb_channels, settings.groups, row.eps or settings.eps
        )
    common = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "temb_channels": settings.temb_channels,
        "dropout": settings.dropout,
        "eps": settings.eps,
        "non_linearity": settings.act_fn,
        "up": up,
        "down": down,
    }
    if row.resampler == "k":
        return ResnetBlock2D(
            **common,  # type: ignore[arg-type]
            groups=groups or k_groups(in_channels),
            groups_out=groups_out or k_groups(out_channels),
            time_embedding_norm="ada_group",
            conv_shortcut_bias=False,
            conv_2d_out_channels=final_channels,
        )
    if row.resampler == "skip":
        return ResnetBlock2D(
            **common,  # type: ignore[arg-type]
            groups=groups or min(in_channels // 4, 32),
            groups_out=groups_out or min(out_channels // 4, 32),
            time_embedding_norm=settings.time_norm,
            output_scale_factor=math.sqrt(2.0),
            use_in_shortcut=True if up or down else None,
            fir="zeros" if up or down else None,
        )
    # only the blocks that resample by residual blocks read these two entries of a configuration
    by_resnet = row.resampler == "resnet"
    return ResnetBlock2D(
        **common,  # type: ignore[arg-type]
        groups=settings.groups,
        time_embedding_norm=settings.time_norm,
        skip_time_act=settings.skip_time_act and by_resnet,
        output_scale_factor=settings.output_scale_factor if by_resnet else 1.0,
    )


def make_attention(
    row: Row, settings: StageSettings, width: int, depth: int, add_self_attention: bool = False
) -> nn.Module | None:
    """The module of the attention lane, None if the row has none."""
    head_dim = settings.head_dim or width
    if row.attention is None:
        return None
    if row.attention in ("transformer", "spatio_temporal"):
        return _transformer(row, settings, width, depth)
    if row.attention == "added_kv":
        return Attention(
            query_dim=width,
            cross_attention_dim=width,
            heads=width // head_dim,
            dim_head=head_dim,
            added_kv_proj_dim=settings.cross_attention_dim,
            norm_num_groups=settings.groups,
            bias=True,
            upcast_softmax=True,
            only_cross_attention=settings.only_cross_attention,
            cross_attention_norm=settings.cross_attention_norm,
        )
    if row.attention == "k":
        assert settings.temb_channels is not None
        return KAttentionBlock(
            width,
            width // head_dim,
            head_dim,
            cross_attention_dim=settings.cross_attention_dim,
            temb_channels=settings.temb_channels,
            attention_bias=True,
            add_self_attention=add_self_attention,
            cross_attention_norm="layer_norm",
            group_size=_K_GROUP_SIZE,
        )
    groups = settings.groups if settings.attn_groups is None else settings.attn_groups
    scale = settings.output_scale_factor if row.resampler == "resnet" else 1.0
    if row.resampler == "skip":
        groups, scale = 32, math.sqrt(2.0)
    return Attention(
        query_dim=width,
        heads=width // head_dim,
        dim_head=head_dim,
        rescale_output_factor=scale,
        eps=settings.eps,
        norm_num_groups=groups or None,
        residual_connection=True,
        bias=True,
        upcast_softmax=True,
    )


def _transformer(row: Row, settings: StageSettings, width: int, depth: int) -> nn.Module:
    if not settings.heads or settings.heads < 1 or width % settings.heads:
        raise InputError(
            f"A block of {width} channels cannot be split into {settings.heads} attention heads."
        )
    common = {
        "num_attention_heads": settings.heads,
        "attention_head_dim": width // settings.heads,
        "in_channels": width,
        "norm_num_groups": settings.groups,
        "cross_attention_dim": settings.cross_attention_dim,
    }
    if row.attention == "spatio_temporal":
        return SpatioTemporalTransformer(**common, num_layers=depth)  # type: ignore[arg-type]
    if settings.dual_cross_attention:
        return DualTransformer(**common, num_layers=1)
    return SpatialTransformer(
        **common,  # type: ignore[arg-type]
        num_layers=depth,
        use_linear_projection=settings.use_linear_projection,
        only_cross_attention=settings.only_cross_attention,
        upcast_attention=settings.upcast_attention,
        attention_type=settings.attention_type,
    )


def make_motion_modules(
    width: int, depths: Sequence[int], heads: int, groups: int, length: int, twice: bool = True
) -> list[nn.Module]:
    """Motion modules (https://arxiv.org/abs/2307.04725), with so many transformer blocks each, for so many frames.

    A block attends along time ``twice``, or once.
    """
    if heads < 1 or width % heads:
        raise InputError(f"A motion module of {width} channels cannot be split into {heads} attention heads.")
    head_dim = width // heads
    return [TemporalTransformer(heads, head_dim, width, depth, groups, length, twice) for depth in depths]


def make_along_time(row: Row, settings: StageSettings, width: int, resnets: int, layers: int) -> AlongTime:
    """The lanes along time beside so many residual blocks, in so many layers."""
    if row.time == "motion":
        depths = each_layer(settings.motion_layers, layers, "temporal_transformer_layers_per_block")
        heads, length = settings.motion_heads, settings.motion_length
        modules = make_motion_modules(width, depths, heads, settings.groups, length, settings.motion_twice)
        return AlongTime(motion_modules=modules)
    if row.time != "layers":
        return AlongTime()
    attentions = 0 if row.attention is None else layers
    return AlongTime(
        temp_convs=[TemporalConvolution(width, groups=settings.groups) for _ in range(resnets)],
        temp_attentions=[
            TemporalTransformer(
                settings.heads, width // settings.heads, width, norm_num_groups=settings.groups
            )
            for _ in range(attentions)
        ],
    )


def make_downsampler(row: Row, settings: StageSettings, width: int) -> nn.Module:
    """What halves the resolution at a stage's end."""
    if row.resampler == "k":
        return FirDownsample("reflect")
    if row.resampler == "resnet" or (row.attention == "pixels" and settings.resample_type == "resnet"):
        return make_resnet(row, settings, width, width, down=True)
    return Downsample2D(width, use_conv=True, padding=settings.downsample_padding)


def make_upsampler(row: Row, settings: StageSettings, width: int) -> nn.Module:
    """What doubles the resolution at a stage's end."""
    if row.resampler == "resnet" or (row.attention == "pixels" and settings.resample_type == "resnet"):
        return make_resnet(row, settings, width, width, up=True)
    return Upsample2D(width, use_conv=True)
