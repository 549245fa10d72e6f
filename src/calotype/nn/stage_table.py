"""From the name of a block in a configuration to a stage of a U-Net.

Each name is a row: which attention stands in the lane, how the resolution changes. The rest is arithmetic.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from calotype.core.errors import InputError
from calotype.nn import stage
from calotype.nn.resampling import FirUpsample
from calotype.nn.skip_stage import SkipDownStage, SkipUpStage
from calotype.nn.spatio_temporal import attend_spatio_temporal
from calotype.nn.stage import DownStage, MidStage, UpStage
from calotype.nn.stage_parts import (
    Row,
    StageSettings,
    each_layer,
    k_groups,
    make_along_time,
    make_attention,
    make_downsampler,
    make_resnet,
    make_upsampler,
)

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
    "DownBlock3D": Row(None, "conv", "layers"),
    "CrossAttnDownBlock3D": Row("transformer", "conv", "layers"),
    "DownBlockMotion": Row(None, "conv", "motion"),
    "CrossAttnDownBlockMotion": Row("transformer", "conv", "motion"),
    "DownBlockSpatioTemporal": Row(None, "conv", "mixed", eps=1e-5),
    "CrossAttnDownBlockSpatioTemporal": Row("spatio_temporal", "conv", "mixed", eps=1e-6),
}
MID = {
    "UNetMidBlock2D": Row("pixels", "resnet"),
    "UNetMidBlock2DCrossAttn": Row("transformer", "resnet"),
    "UNetMidBlock2DSimpleCrossAttn": Row("added_kv", "resnet"),
    "UNetMidBlock3DCrossAttn": Row("transformer", "resnet", "layers"),
    "UNetMidBlockCrossAttnMotion": Row("transformer", "resnet", "motion"),
    "UNetMidBlockSpatioTemporal": Row("spatio_temporal", "resnet", "mixed", eps=1e-5),
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
    "UpBlock3D": Row(None, "conv", "layers"),
    "CrossAttnUpBlock3D": Row("transformer", "conv", "layers"),
    "UpBlockMotion": Row(None, "conv", "motion"),
    "CrossAttnUpBlockMotion": Row("transformer", "conv", "motion"),
    "UpBlockSpatioTemporal": Row(None, "conv", "mixed", eps=1e-6),
    "CrossAttnUpBlockSpatioTemporal": Row("spatio_temporal", "conv", "mixed", eps=1e-6),
}

_ATTEND: dict[str | None, stage.Attend] = {
    None: stage.attend_pixels,
    "pixels": stage.attend_pixels,
    "transformer": stage.attend_transformer,
    "spatio_temporal": attend_spatio_temporal,
    "added_kv": stage.attend_added_kv,
    "k": stage.attend_k,
}


def lookup(name: str, table: dict[str, Row], entry: str) -> Row:
    """The row of block ``name``; ``InputError`` names the nearest known blocks if there is none."""
    short = str(name).removeprefix("UNetRes")
    if short in table:
        return table[short]
    near = difflib.get_close_matches(short, table, n=2, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the known ones are {', '.join(table)}."
    raise InputError(f"{entry} has no block {name!r}; {hint}")


def down_stage(
    name: str, settings: StageSettings, channels: tuple[int, int], num_layers: int, resamples: bool
) -> DownStage | SkipDownStage:
    """The block ``name`` of the way down from ``channels[0]`` to ``channels[1]`` channels."""
    row = lookup(name, DOWN, "down_block_types")
    first, width = channels
    resnets = [make_resnet(row, settings, n, width) for n in [first] + [width] * (num_layers - 1)]
    # k-diffusion's U-Nets attend among the pixels at the lowest resolution only
    lane = _lane(
        make_attention(row, settings, width, depth, add_self_attention=not resamples)
        for depth in _depths(settings, num_layers)
    )
    if row.resampler == "skip":
        down = make_resnet(row, settings, width, width, down=True) if resamples else None
        return SkipDownStage(resnets, lane, down, width)
    return DownStage(
        resnets,
        lane,
        _ATTEND[row.attention],
        make_downsampler(row, settings, width) if resamples else None,
        keep_downsampled=row.resampler != "k",
        along_time=make_along_time(row, settings, width, num_layers, num_layers),
    )


def up_stage(
    name: str, settings: StageSettings, channels: tuple[int, int, int], num_layers: int, resamples: bool
) -> UpStage | SkipUpStage:
    """The block ``name`` of the way up.

    ``channels`` are those that arrive, those of the stage, and those of the way down's stage one level up, from
    which its last layer's skip comes.
    """
    row = lookup(name, UP, "up_block_types")
    previous, width, above = channels
    if row.resampler == "k":
        return _k_up_stage(row, settings, width, above, num_layers - 1, resamples)
    incoming = [previous] + [width] * (num_layers - 1)
    skips = [width] * (num_layers - 1) + [above]
    if row.resampler == "skip":
        return _skip_up_stage(row, settings, width, incoming, skips, resamples)
    lane = _lane(make_attention(row, settings, width, depth) for depth in _depths(settings, num_layers))
    return UpStage(
        [make_resnet(row, settings, n + skip, width) for n, skip in zip(incoming, skips, strict=True)],
        lane,
        _ATTEND[row.attention],
        make_upsampler(row, settings, width) if resamples else None,
        takes_freeu=row.attention in (None, "transformer") and row.resampler == "conv",
        along_time=make_along_time(row, settings, width, num_layers, num_layers),
    )


def mid_stage(
    name: str, settings: StageSettings, channels: int, num_layers: int = 1, add_attention: bool = True
) -> MidStage:
    """The block ``name`` at the lowest resolution: one residual block and ``num_layers`` pairs."""
    if name not in MID:
        near = difflib.get_close_matches(str(name), MID, n=2, cutoff=0.0)
        raise InputError(f"mid_block_type has no block {name!r}; did you mean {' or '.join(near)}?")
    row = MID[name] if add_attention else MID[name]._replace(attention=None)
    if MID[name].attention != "added_kv":
        settings = replace(settings, skip_time_act=False)
    lane = _lane(make_attention(row, settings, channels, depth) for depth in _depths(settings, num_layers))
    return MidStage(
        [make_resnet(row, settings, channels, channels) for _ in range(num_layers + 1)],
        lane,
        _ATTEND[row.attention],
        make_along_time(row, settings, channels, num_layers + 1, num_layers),
    )


def _k_up_stage(
    row: Row, settings: StageSettings, width: int, above: int, num_layers: int, resamples: bool
) -> UpStage:
    """k-diffusion's way up: one skip, joined at the start; the last layer changes the number of channels.

    The stage at the lowest resolution, told by its width, has self-attention and reads no skip.
    """
    innermost = row.attention == "k" and above == width == settings.temb_channels
    resnets: list[nn.Module] = []
    attentions: list[nn.Module | None] = []
    for index, depth in enumerate(_depths(settings, num_layers)):
        is_last = index == num_layers - 1
        incoming = 2 * width if index == 0 and not innermost else width
        if row.attention is None:
            out = above if is_last else width
            resnets.append(make_resnet(row, settings, incoming, out, groups_out=k_groups(width)))
            continue
        narrowed = above if is_last and above != width else None
        resnets.append(make_resnet(row, settings, incoming, width, final_channels=narrowed))
        attentions.append(make_attention(row, settings, narrowed or width, depth, innermost))
    upsampler = FirUpsample("reflect") if resamples else None
    joins: Literal["once", "never"] = "never" if innermost else "once"
    return UpStage(resnets, _lane(attentions), _ATTEND[row.attention], upsampler, joins=joins)


def _skip_up_stage(
    row: Row,
    settings: StageSettings,
    width: int,
    incoming: Sequence[int],
    skips: Sequence[int],
    resamples: bool,
) -> SkipUpStage:
    """NCSN++'s way up, with one attention after all layers."""
    resnets = []
    for n, skip in zip(incoming, skips, strict=True):
        # with attention the first norm's groups are counted in another way, which checkpoints were trained with
        groups = min((n + skip) // 4, 32) if row.attention is None else min(n + skip // 4, 32)
        resnets.append(make_resnet(row, settings, n + skip, width, groups=groups))
    up = make_resnet(row, settings, width, width, up=True) if resamples else None
    return SkipUpStage(resnets, _lane([make_attention(row, settings, width, 1)]), up, width, settings.eps)


def _lane(modules: Iterable[nn.Module | None]) -> list[nn.Module]:
    """The modules of the attention lane, which is empty in blocks without attention."""
    return [module for module in modules if module is not None]


def _depths(settings: StageSettings, num_layers: int) -> list[int]:
    """How many transformer blocks each layer of a stage has."""
    return each_layer(settings.transformer_layers, num_layers, "transformer_layers_per_block")
