"""From the name of a block in a configuration to the modules in a stage's lanes.

Each name is a row: which attention stands in the lane, how the resolution changes. The rest is arithmetic.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from calotype.core.errors import InputError
from calotype.nn import stage
from calotype.nn.attention import Attention
from calotype.nn.k_attention import KAttentionBlock
from calotype.nn.resampling import Downsample2D, FirDownsample, FirUpsample, Upsample2D
from calotype.nn.resnet import ResnetBlock2D
from calotype.nn.skip_stage import SkipDownStage, SkipUpStage
from calotype.nn.stage import DownStage, MidStage, UpStage
from calotype.nn.transformer import DualTransformer, SpatialTransformer


class Row(NamedTuple):
    """``attention``: None, pixels, transformer, added_kv or k; ``resampler``: conv, resnet, k or skip."""

    attention: str | None
    resampler: str


DOWN = {
    "DownBlock2D": Row(None, "conv"),
    "AttnDownBlock2D": Row("pixels", "conv"),
    "CrossAttnDownBlock2D": Row("transformer", "conv"),
    "ResnetDownsampleBlock2D": Row(None, "resnet"),
    "SimpleCrossAttnDownBlock2D": Row("added_kv", "resnet"),
    "KDownBlock2D": Row(None, "k"),
    "KCrossAttnDownBlock2D": Row("k", "k"),
    "SkipDownBlock2D": Row(None, "skip"),
    "AttnSkipDownBlock2D": Row("pixels", "skip"),
    "DownEncoderBlock2D": Row(None, "conv"),
    "AttnDownEncoderBlock2D": Row("pixels", "conv"),
}
MID = {
    "UNetMidBlock2D": "pixels",
    "UNetMidBlock2DCrossAttn": "transformer",
    "UNetMidBlock2DSimpleCrossAttn": "added_kv",
}
UP = {
    "UpBlock2D": Row(None, "conv"),
    "AttnUpBlock2D": Row("pixels", "conv"),
    "CrossAttnUpBlock2D": Row("transformer", "conv"),
    "ResnetUpsampleBlock2D": Row(None, "resnet"),
    "SimpleCrossAttnUpBlock2D": Row("added_kv", "resnet"),
    "KUpBlock2D": Row(None, "k"),
    "KCrossAttnUpBlock2D": Row("k", "k"),
    "SkipUpBlock2D": Row(None, "skip"),
    "AttnSkipUpBlock2D": Row("pixels", "skip"),
    "UpDecoderBlock2D": Row(None, "conv"),
    "AttnUpDecoderBlock2D": Row("pixels", "conv"),
}

_ATTEND: dict[str | None, stage.Attend] = {
    None: stage.attend_pixels,
    "pixels": stage.attend_pixels,
    "transformer": stage.attend_transformer,
    "added_kv": stage.attend_added_kv,
    "k": stage.attend_k,
}
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


def lookup(name: str, table: dict[str, Row], entry: str) -> Row:
    """The row of block ``name``; ``InputError`` names the nearest known blocks if there is none."""
    name = str(name).removeprefix("UNetRes")
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=2, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the known ones are {', '.join(table)}."
    raise InputError(f"{entry} has no block {name!r}; {hint}")


def down_stage(
    name: str, settings: StageSettings, channels: tuple[int, int], num_layers: int, resamples: bool
) -> DownStage | SkipDownStage:
    """The block ``name`` of the way down from ``channels[0]`` to ``channels[1]`` channels."""
    row = lookup(name, DOWN, "down_block_types")
    first, width = channels
    inputs = [first] + [width] * (num_layers - 1)
    resnets = [_resnet(row, settings, n, width) for n in inputs]
    layers = _per_layer(settings, num_layers)
    attentions = [
        _attention(row, settings, width, depth, add_self_attention=not resamples) for depth in layers
    ]
    lane = [attention for attention in attentions if attention is not None]
    if row.resampler == "skip":
        down = _resnet(row, settings, width, width, down=True) if resamples else None
        return SkipDownStage(resnets, lane, down, width)
    downsampler: nn.Module | None = None
    if resamples:
        downsampler = _downsampler(row, settings, width)
    return DownStage(
        resnets, lane, _ATTEND[row.attention], downsampler, keep_downsampled=row.resampler != "k"
    )


def up_stage(
    name: str,
    settings: StageSettings,
    channels: tuple[int, int, int],
    num_layers: int,
    resamples: bool,
) -> UpStage | SkipUpStage:
    """The block ``name`` of the way up.

    ``channels`` are those that arrive, those of the stage, and those of the way down's stage one level up, from
    which its last layer's skip comes. With 0 for the last there are no skips: an autoencoder's decoder.
    """
    row = lookup(name, UP, "up_block_types")
    previous, width, above = channels
    if row.resampler == "k":
        return _k_up_stage(row, settings, (previous, width, above), num_layers - 1, resamples)
    incoming = [previous] + [width] * (num_layers - 1)
    skips = [width] * (num_layers - 1) + [above] if above else [0] * num_layers
    resnets = [_resnet(row, settings, n + skip, width) for n, skip in zip(incoming, skips, strict=True)]
    if row.resampler == "skip" and row.attention is not None:
        # these blocks count the groups of their first norms in another way; checkpoints were trained with it
        for resnet, n, skip in zip(resnets, incoming, skips, strict=True):
            resnet.norm1 = nn.GroupNorm(min(n + skip // 4, 32), n + skip, eps=settings.eps)
    if row.resampler == "skip":
        one = _attention(row, settings, width, 1)
        up = _resnet(row, settings, width, width, up=True) if resamples else None
        return SkipUpStage(resnets, [] if one is None else [one], up, width, settings.eps)
    layers = _per_layer(settings, num_layers)
    attentions = [_attention(row, settings, width, depth) for depth in layers]
    upsampler: nn.Module | None = None
    if resamples:
        upsampler = _upsampler(row, settings, width)
    return UpStage(
        resnets,
        [attention for attention in attentions if attention is not None],
        _ATTEND[row.attention],
        upsampler,
        takes_freeu=row.attention in (None, "transformer") and row.resampler == "conv",
    )


def mid_stage(
    name: str, settings: StageSettings, channels: int, num_layers: int = 1, add_attention: bool = True
) -> MidStage:
    """The block ``name`` at the lowest resolution: one residual block and ``num_layers`` pairs."""
    if name not in MID:
        near = difflib.get_close_matches(str(name), MID, n=1, cutoff=0.0)
        raise InputError(f"mid_block_type has no block {name!r}; did you mean {' or '.join(near)}?")
    kind = MID[name]
    row = Row(kind if add_attention else None, "resnet")
    if kind != "added_kv":
        settings = replace(settings, skip_time_act=False)
    lane = [_attention(row, settings, channels, depth) for depth in _per_layer(settings, num_layers)]
    return MidStage(
        [_resnet(row, settings, channels, channels) for _ in range(num_layers + 1)],
        [attention for attention in lane if attention is not None],
        _ATTEND[row.attention],
    )


def _k_up_stage(
    row: Row, settings: StageSettings, channels: tuple[int, int, int], num_layers: int, resamples: bool
) -> UpStage:
    """k-diffusion's way up: one skip, joined at the start; the last layer changes the number of channels.

    The stage at the lowest resolution, told by its width, has self-attention and reads no skip.
    """
    _, width, above = channels
    is_first = row.attention == "k" and above == width == settings.temb_channels
    is_middle = above != width
    resnets, lane = [], []
    for index, depth in enumerate(_per_layer(settings, num_layers)):
        is_last = index == num_layers - 1
        incoming = 2 * width if index == 0 and not is_first else width
        if row.attention is None:
            resnets.append(_resnet(row, settings, incoming, above if is_last else width))
            continue
        narrows = above if is_middle and is_last else None
        resnets.append(_resnet(row, settings, incoming, width, final_channels=narrows))
        attention = _attention(row, settings, above if is_last else width, depth, add_self_attention=is_first)
        assert attention is not None
        lane.append(attention)
    upsampler = FirUpsample("reflect") if resamples else None
    return UpStage(resnets, lane, _ATTEND[row.attention], upsampler, joins="never" if is_first else "once")


def _per_layer(settings: StageSettings, num_layers: int) -> Iterable[int]:
    """How many transformer blocks each layer of a stage has."""
    depth = settings.transformer_layers
    if isinstance(depth, int):
        return [depth] * num_layers
    if len(depth) < num_layers:
        raise InputError(
            f"transformer_layers_per_block has {len(depth)} entries {tuple(depth)} for a block of {num_layers} "
            f"layers: give one for each, or one number for all."
        )
    return list(depth[:num_layers])


def _resnet(
    row: Row,
    settings: StageSettings,
    in_channels: int,
    out_channels: int,
    up: bool = False,
    down: bool = False,
    final_channels: int | None = None,
) -> ResnetBlock2D:
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
            groups=max(1, in_channels // _K_GROUP_SIZE),
            groups_out=max(1, out_channels // _K_GROUP_SIZE),
            time_embedding_norm="ada_group",
            conv_shortcut_bias=False,
            conv_2d_out_channels=final_channels,
        )
    if row.resampler == "skip":
        return ResnetBlock2D(
            **common,  # type: ignore[arg-type]
            groups=min(in_channels // 4, 32),
            groups_out=min(out_channels // 4, 32),
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


def _attention(
    row: Row, settings: StageSettings, width: int, depth: int, add_self_attention: bool = False
) -> nn.Module | None:
    """The module of the attention lane, None if the row has none."""
    head_dim = settings.head_dim or width
    if row.attention is None:
        return None
    if row.attention == "transformer":
        return _transformer(settings, width, depth)
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
    spatial = settings.time_norm == "spatial"
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
        spatial_norm_dim=settings.temb_channels if spatial else None,
        residual_connection=True,
        bias=True,
        upcast_softmax=True,
    )


def _transformer(settings: StageSettings, width: int, depth: int) -> nn.Module:
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


def _downsampler(row: Row, settings: StageSettings, width: int) -> nn.Module:
    if row.resampler == "k":
        return FirDownsample("reflect")
    if row.resampler == "resnet" or (row.attention == "pixels" and settings.resample_type == "resnet"):
        return _resnet(row, settings, width, width, down=True)
    return Downsample2D(width, use_conv=True, padding=settings.downsample_padding)


def _upsampler(row: Row, settings: StageSettings, width: int) -> nn.Module:
    if row.resampler == "resnet" or (row.attention == "pixels" and settings.resample_type == "resnet"):
        return _resnet(row, settings, width, width, up=True)
    return Upsample2D(width, use_conv=True)
