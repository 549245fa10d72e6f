"""The U-Net of ModelScope's and Zeroscope's text-to-video models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calotype.core.config import Config
from calotype.core.errors import InputError
from calotype.core.frames import apart, together
from calotype.core.outputs import BaseOutput
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.attention_addons import MergesTokens
from calotype.models.feed_forward_access import FeedForwardAccess
from calotype.models.freeu_access import FreeUAccess
from calotype.models.modeling import ModelMixin
from calotype.models.unet_conditioning import add_conditioning, embed_conditions
from calotype.models.unet_layout import check_layout, down_stages, mid_stage_of, per_stage, up_stages
from calotype.nn.stage import Conditioning
from calotype.nn.temporal import TemporalTransformer
from calotype.nn.unet_paths import Added, through

HEADS_AT_FIRST = 8
"""The heads of the attention along time that comes before all stages."""


@dataclass
class UNet3DConditionOutput(BaseOutput):
    """``sample`` (batch, out_channels, frames, height, width)."""

    sample: torch.Tensor | None = None


class UNet3DConditionModel(
    AdapterAccess, AttentionAccess, FreeUAccess, FeedForwardAccess, MergesTokens, ModelMixin
):
    """A U-Net over videos that attends to a context (https://arxiv.org/abs/2308.06571).

    It is the U-Net over pictures with convolutions and attention along time after those within the pictures.
    ``attention_head_dim`` is the width of a head. Raises ``InputError`` for ``num_attention_heads``.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("BasicTransformerBlock", "ResnetBlock2D", "UpStage")
    _repeated_blocks = ("BasicTransformerBlock",)

    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock3D",
            "CrossAttnDownBlock3D",
            "CrossAttnDownBlock3D",
            "DownBlock3D",
        ),
        up_block_types: tuple[str, ...] = (
            "UpBlock3D",
            "CrossAttnUpBlock3D",
            "CrossAttnUpBlock3D",
            "CrossAttnUpBlock3D",
        ),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int | tuple[int, ...] = 64,
        num_attention_heads: int | tuple[int, ...] | None = None,
        time_cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        if num_attention_heads is not None:
            raise InputError(
                "num_attention_heads cannot be set: give the width of a head as attention_head_dim, which is the "
                "entry that checkpoints have for it."
            )
        layout = layout_of(self.config)
        check_layout(layout, along_time="layers")
        first = block_out_channels[0]

        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        temb_channels = add_conditioning(self, layout)
        self.transformer_in = TemporalTransformer(
            HEADS_AT_FIRST,
            per_stage(layout, "attention_head_dim")[0],
            first,
            norm_num_groups=layout.norm_num_groups or 32,
        )
        self.down_blocks = down_stages(layout, temb_channels)
        self.mid_block = mid_stage_of(layout, temb_channels)
        self.up_blocks = up_stages(layout, temb_channels)
        self.conv_norm_out: nn.GroupNorm | None = None
        self.conv_act: nn.Module | None = None
        if norm_num_groups is not None:
            self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=norm_eps)
            self.conv_act = nn.SiLU()  # whatever act_fn is, which is that of all else
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: tuple[torch.Tensor, ...] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[torch.Tensor]:
        """(batch, in_channels, frames, height, width) at ``timestep`` -> ``UNet3DConditionOutput``.

        ``encoder_hidden_states`` (batch, tokens, cross_attention_dim) is read by every frame. The residuals are for
        frames in the batch, (batch·frames, channels, height, width). ``class_labels`` and ``attention_mask`` have never
        had a meaning here and are refused with ``InputError``.
        """
        for name, value in (("class_labels", class_labels), ("attention_mask", attention_mask)):
            if value is not None:
                raise InputError(f"{name} means nothing to UNet3DConditionModel; leave it out.")
        frames = sample.shape[2]
        temb, _ = embed_conditions(self, sample, timestep, encoder_hidden_states, None, timestep_cond, {})
        kwargs = {k: v for k, v in (cross_attention_kwargs or {}).items() if k != "scale"} or None
        given = Conditioning(
            temb=temb.repeat_interleave(frames, dim=0),
            context=encoder_hidden_states.repeat_interleave(frames, dim=0),
            kwargs=kwargs,
            frames=frames,
        )
        features = [self.transformer_in(self.conv_in(together(sample)), frames, kwargs)]
        beside = Added((), down_block_additional_residuals, mid_block_additional_residual)
        h = through(self, features, given, beside)
        if self.conv_norm_out is not None and self.conv_act is not None:
            h = self.conv_act(self.conv_norm_out(h))
        h = apart(self.conv_out(h), frames)
        return UNet3DConditionOutput(sample=h) if return_dict else (h,)


def layout_of(config: Config) -> Config:
    """The configuration of a U-Net with layers along time, with what one over pictures has as entries beside it."""
    widths = tuple(config.block_out_channels)
    dims = config.attention_head_dim
    dims = (dims,) * len(widths) if isinstance(dims, int) else tuple(dims)
    return Config(
        {
            **config,
            "num_attention_heads": tuple(width // dim for width, dim in zip(widths, dims, strict=False)),
            "attention_head_dim": dims,
            "mid_block_type": "UNetMidBlock3DCrossAttn",
            "use_linear_projection": True,
            "resnet_time_scale_shift": "default",
            "flip_sin_to_cos": True,
            "freq_shift": 0,
        }
    )
