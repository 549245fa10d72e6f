"""What makes a U-Net for pictures one for videos: AnimateDiff's motion modules, in a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.models.modeling import ModelMixin
from calotype.nn.stage_parts import each_layer, make_motion_modules


class MotionModules(nn.Module):
    """The motion modules of one stage."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.motion_modules = nn.ModuleList(modules)


class MotionAdapter(ModelMixin):
    """Motion modules for a U-Net's stages (https://arxiv.org/abs/2307.04725), under the names that they have there.

    Entries that may differ between stages are one value or one for each of ``block_out_channels``. With
    ``conv_in_channels`` there is a first convolution too, for a U-Net that reads more than latents.
    """

    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        motion_layers_per_block: int | tuple[int, ...] = 2,
        motion_transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1,
        motion_mid_block_layers_per_block: int = 1,
        motion_transformer_layers_per_mid_block: int | tuple[int, ...] = 1,
        motion_num_attention_heads: int | tuple[int, ...] = 8,
        motion_norm_num_groups: int = 32,
        motion_max_seq_length: int = 32,
        use_motion_mid_block: bool = True,
        conv_in_channels: int | None = None,
    ) -> None:
        super().__init__()
        count = len(block_out_channels)
        layers = _each("motion_layers_per_block", motion_layers_per_block, count)
        depths = _each("motion_transformer_layers_per_block", motion_transformer_layers_per_block, count)
        heads = _each("motion_num_attention_heads", motion_num_attention_heads, count)

        def modules(stage: int, layers: int, depth: Any, entry: str) -> MotionModules:
            return MotionModules(
                make_motion_modules(
                    block_out_channels[stage],
                    each_layer(depth, layers, entry),
                    heads[stage],
                    motion_norm_num_groups,
                    motion_max_seq_length,
                )
            )

        entry = "motion_transformer_layers_per_block"
        stages = range(count)
        self.down_blocks = nn.ModuleList(modules(i, layers[i], depths[i], entry) for i in stages)
        self.up_blocks = nn.ModuleList(modules(i, layers[i] + 1, depths[i], entry) for i in reversed(stages))
        self.mid_block: MotionModules | None = None
        if use_motion_mid_block:
            self.mid_block = modules(
                count - 1,
                motion_mid_block_layers_per_block,
                motion_transformer_layers_per_mid_block,
                "motion_transformer_layers_per_mid_block",
            )
        self.conv_in: nn.Conv2d | None = None
        if conv_in_channels:
            self.conv_in = nn.Conv2d(conv_in_channels, block_out_channels[0], 3, padding=1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Refused: the modules work in a U-Net."""
        raise InputError("A MotionAdapter computes nothing by itself; put it into a UNetMotionModel.")


def _each(name: str, value: Any, count: int) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        return (value,) * count
    if len(value) != count:
        raise InputError(
            f"{name} has {len(value)} entries {tuple(value)} for {count} block_out_channels: give one for each, or "
            f"one value for all."
        )
    return tuple(value)
