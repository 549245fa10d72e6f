"""The stages of a U-Net with attention to a context, from its configuration.

The same functions build the encoder half of a ControlNet, whose configuration has the same entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from calotype.core.config import Config
from calotype.core.errors import InputError
from calotype.nn.stage import DownStage, MidStage, UpStage
from calotype.nn.stage_parts import StageSettings
from calotype.nn.stage_table import DOWN, UP, down_stage, lookup, mid_stage, up_stage


def per_stage(config: Config, name: str, default: Any = None) -> tuple[Any, ...]:
    """Entry ``name`` for each stage of the way down; a single value holds for all."""
    value = config.get(name, default)
    count = len(config.down_block_types)
    if not isinstance(value, tuple | list):
        return (value,) * count
    if len(value) != count:
        raise InputError(
            f"{name} has {len(value)} entries {tuple(value)} for {count} down_block_types: give one for each, or "
            f"one value for all."
        )
    return tuple(value)


def check_layout(config: Config, along_time: str | None = None) -> None:
    """Refuse a configuration whose parts do not fit each other, before anything is made from it.

    ``along_time`` is what the model's blocks have for videos, as the rows of the table of blocks say it.
    """
    count = len(config.down_block_types)
    if not count:
        raise InputError("down_block_types is empty: a U-Net needs at least one block.")
    for entry, table in (("down_block_types", DOWN), ("up_block_types", UP)):
        for name in config.get(entry, ()):
            if lookup(name, table, entry).time != along_time:
                what = "is for videos" if along_time is None else "is not for videos as this model makes them"
                raise InputError(
                    f"{entry} has the block {name!r}, which {what}; choose another one or another model."
                )
    for name in ("up_block_types", "block_out_channels"):
        if name in config and len(config[name]) != count:
            raise InputError(
                f"{name} has {len(config[name])} entries {config[name]} and down_block_types has {count}: both "
                f"need one for each stage."
            )
    for name in (
        "only_cross_attention",
        "attention_head_dim",
        "num_attention_heads",
        "cross_attention_dim",
        "layers_per_block",
        "transformer_layers_per_block",
    ):
        per_stage(config, name)
    depths = config.get("transformer_layers_per_block", 1)
    nested = isinstance(depths, tuple) and any(isinstance(depth, tuple) for depth in depths)
    has_way_up = "up_block_types" in config
    if nested and has_way_up and config.get("reverse_transformer_layers_per_block") is None:
        raise InputError(
            "transformer_layers_per_block is nested, which does not say how the way up is built: give "
            "reverse_transformer_layers_per_block too."
        )
    reverse = config.get("reverse_transformer_layers_per_block")
    if reverse is not None and len(reverse) != count:
        raise InputError(
            f"reverse_transformer_layers_per_block has {len(reverse)} entries for {count} up_block_types."
        )


class _Plan:
    """The configuration's entries, one for each stage."""

    def __init__(self, config: Config, temb_channels: int) -> None:
        self.config = config
        self.widths: tuple[int, ...] = tuple(config.block_out_channels)
        self.layers = per_stage(config, "layers_per_block")
        self.depths = per_stage(config, "transformer_layers_per_block", 1)
        self.context_dims = per_stage(config, "cross_attention_dim")
        self.head_dims = per_stage(config, "attention_head_dim")
        # what the configurations call attention_head_dim has always been the number of heads of transformers
        heads = config.get("num_attention_heads")
        self.heads = self.head_dims if heads is None else per_stage(config, "num_attention_heads")
        self.only_cross = per_stage(config, "only_cross_attention", False)
        self.motion_heads = per_stage(config, "motion_num_attention_heads", 8)
        self.motion_layers = per_stage(config, "temporal_transformer_layers_per_block", 1)
        self.common: dict[str, Any] = {
            "motion_length": config.get("motion_max_seq_length", 32),
            "motion_twice": config.get("motion_attends_twice", True),
            "temb_channels": temb_channels,
            "dropout": config.get("dropout", 0.0),
            "eps": config.norm_eps,
            "act_fn": config.act_fn,
            "groups": config.norm_num_groups or 32,
            "time_norm": config.resnet_time_scale_shift,
            "skip_time_act": config.get("resnet_skip_time_act", False),
            "use_linear_projection": config.get("use_linear_projection", False),
            "upcast_attention": config.get("upcast_attention", False),
            "dual_cross_attention": config.get("dual_cross_attention", False),
            "cross_attention_norm": config.get("cross_attention_norm"),
            "attention_type": config.get("attention_type", "default"),
            "downsample_padding": config.get("downsample_padding", 1),
        }

    def settings(self, index: int, **changes: Any) -> StageSettings:
        chosen = {
            "heads": self.heads[index],
            "head_dim": self.head_dims[index],
            "transformer_layers": self.depths[index],
            "motion_heads": self.motion_heads[index],
            "motion_layers": self.motion_layers[index],
            "cross_attention_dim": self.context_dims[index],
            "only_cross_attention": self.only_cross[index],
            "output_scale_factor": self.config.get("resnet_out_scale_factor", 1.0),
        }
        return StageSettings(**{**self.common, **chosen, **changes})


def down_stages(config: Config, temb_channels: int) -> nn.ModuleList:
    """The way down: a stage for each of ``down_block_types``; all but the last halve the resolution."""
    plan = _Plan(config, temb_channels)
    widths = (plan.widths[0], *plan.widths)
    last = len(plan.widths) - 1
    return nn.ModuleList(
        _accept(
            name,
            down_stage(
                name,
                plan.settings(index),
                (widths[index], widths[index + 1]),
                plan.layers[index],
                resamples=index < last,
            ),
        )
        for index, name in enumerate(config.down_block_types)
    )


def mid_stage_of(config: Config, temb_channels: int) -> MidStage | None:
    """The stage at the lowest resolution, None if ``mid_block_type`` is None."""
    name = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if name is None:
        return None
    plan = _Plan(config, temb_channels)
    only_cross = config.get("mid_block_only_cross_attention")
    if only_cross is None:
        entry = config.get("only_cross_attention", False)
        only_cross = entry if isinstance(entry, bool) else False
    has_own_resampling = name == "UNetMidBlock2DSimpleCrossAttn"
    settings = plan.settings(
        -1,
        output_scale_factor=config.mid_block_scale_factor,
        only_cross_attention=only_cross and has_own_resampling,
        transformer_layers=config.get("transformer_layers_per_mid_block") or plan.depths[-1],
        motion_layers=config.get("temporal_transformer_layers_per_mid_block") or plan.motion_layers[-1],
    )
    plain = name == "UNetMidBlock2D"
    layers = 0 if plain else config.get("mid_block_layers", 1)
    return mid_stage(name, settings, plan.widths[-1], num_layers=layers, add_attention=not plain)


def up_stages(config: Config, temb_channels: int) -> nn.ModuleList:
    """The way up: a stage for each of ``up_block_types``; all but the last double the resolution.

    Each has one layer more than the stage of the way down at its resolution, for the skip from one level above.
    """
    plan = _Plan(config, temb_channels)
    last = len(plan.widths) - 1
    depths: Sequence[Any] = config.get("reverse_transformer_layers_per_block") or plan.depths[::-1]
    reverse = config.get("reverse_temporal_transformer_layers_per_block")
    motion_layers = plan.motion_layers[::-1] if reverse is None else _each(reverse, last + 1)
    stages = []
    for index, name in enumerate(config.up_block_types):
        mirror = last - index
        settings = plan.settings(
            mirror,
            transformer_layers=depths[index],
            motion_layers=motion_layers[index],
            # the width of heads is read in the order of the way down, as the checkpoints were trained
            head_dim=plan.head_dims[index],
        )
        channels = (
            plan.widths[min(mirror + 1, last)],
            plan.widths[mirror],
            plan.widths[max(mirror - 1, 0)],
        )
        stages.append(
            _accept(
                name,
                up_stage(name, settings, channels, plan.layers[mirror] + 1, resamples=index < last),
            )
        )
    return nn.ModuleList(stages)


def _each(value: Any, count: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * count


def _accept(name: str, stage: nn.Module) -> nn.Module:
    if not isinstance(stage, DownStage | UpStage):
        raise InputError(
            f"{name} carries a picture beside the features, which only UNet2DModel does; choose another block."
        )
    return stage
