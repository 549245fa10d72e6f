"""AnimateDiff's U-Net: one for pictures with motion modules between its layers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.config import Config, init_parameters
from calotype.core.errors import InputError
from calotype.core.frames import apart, context_of_frames, for_frames, together
from calotype.core.outputs import BaseOutput
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.attention_addons import MergesTokens
from calotype.models.feed_forward_access import FeedForwardAccess
from calotype.models.freeu_access import FreeUAccess
from calotype.models.modeling import ModelMixin
from calotype.models.motion_adapter import MotionAdapter
from calotype.models.split_access import SplitAccess
from calotype.models.unet_2d_condition import UNet2DConditionModel
from calotype.models.unet_conditioning import (
    add_conditioning,
    additive_mask,
    embed_conditions,
    image_prompts,
    project_context,
)
from calotype.models.unet_layout import check_layout, down_stages, mid_stage_of, per_stage, up_stages
from calotype.nn.stage import Conditioning
from calotype.nn.unet_paths import Added, through


@dataclass
class UNetMotionOutput(BaseOutput):
    """``sample`` (batch, out_channels, frames, height, width)."""

    sample: torch.Tensor | None = None


class UNetMotionModel(
    AdapterAccess, AttentionAccess, FreeUAccess, FeedForwardAccess, SplitAccess, MergesTokens, ModelMixin
):
    """A U-Net over videos whose weights are those of one over pictures and of a :class:`MotionAdapter`.

    https://arxiv.org/abs/2307.04725. Entries that may differ between stages are one value or one for each of
    ``down_block_types``.
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
            "CrossAttnDownBlockMotion",
            "CrossAttnDownBlockMotion",
            "CrossAttnDownBlockMotion",
            "DownBlockMotion",
        ),
        up_block_types: tuple[str, ...] = (
            "UpBlockMotion",
            "CrossAttnUpBlockMotion",
            "CrossAttnUpBlockMotion",
            "CrossAttnUpBlockMotion",
        ),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,
        transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1,
        reverse_transformer_layers_per_block: int
        | tuple[int, ...]
        | tuple[tuple[int, ...], ...]
        | None = None,
        temporal_transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1,
        reverse_temporal_transformer_layers_per_block: int
        | tuple[int, ...]
        | tuple[tuple[int, ...], ...]
        | None = None,
        transformer_layers_per_mid_block: int | tuple[int, ...] | None = None,
        temporal_transformer_layers_per_mid_block: int | tuple[int, ...] | None = 1,
        use_linear_projection: bool = False,
        num_attention_heads: int | tuple[int, ...] = 8,
        motion_max_seq_length: int = 32,
        motion_num_attention_heads: int | tuple[int, ...] = 8,
        reverse_motion_num_attention_heads: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        use_motion_mid_block: bool = True,
        mid_block_layers: int = 1,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        projection_class_embeddings_input_dim: int | None = None,
        time_cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        if reverse_motion_num_attention_heads is not None:
            raise InputError(
                "reverse_motion_num_attention_heads has never had a meaning: the way up has the heads of the way down, "
                "motion_num_attention_heads; leave it out."
            )
        layout = _layout(self.config)
        check_layout(layout, along_time="motion")
        first = block_out_channels[0]

        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        temb_channels = add_conditioning(self, layout)
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
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        down_block_additional_residuals: tuple[torch.Tensor, ...] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetMotionOutput | tuple[torch.Tensor]:
        """(batch, in_channels, frames, height, width) at ``timestep`` -> ``UNetMotionOutput``.

        ``encoder_hidden_states`` has a row for each video, (batch, tokens, channels), or for each frame, (batch·frames,
        …) or (batch, frames, …). The residuals are for frames in the batch, (batch·frames, channels, height, width).
        ``cross_attention_kwargs`` may hold ``windows`` for attention along time, without which ``InputError`` is
        raised for more frames than the motion modules know.
        """
        frames = sample.shape[2]
        added = added_cond_kwargs or {}
        temb, _ = embed_conditions(self, sample, timestep, encoder_hidden_states, None, timestep_cond, added)
        context = project_context(self, encoder_hidden_states, added)
        mask = additive_mask(attention_mask, sample.dtype)
        kwargs = {k: v for k, v in (cross_attention_kwargs or {}).items() if k != "scale"}
        windows = kwargs.pop("windows", None)
        kwargs = for_frames(image_prompts(self, kwargs, added), len(sample), frames)
        given = Conditioning(
            temb=temb.repeat_interleave(frames, dim=0),
            context=context_of_frames(context, len(sample), frames),
            self_mask=None if mask is None else mask.repeat_interleave(frames, dim=0),
            kwargs=kwargs or None,
            frames=frames,
            windows=windows,
        )
        features = [self.conv_in(together(sample))]
        beside = Added((), down_block_additional_residuals, mid_block_additional_residual)
        h = through(self, features, given, beside)
        if self.conv_norm_out is not None and self.conv_act is not None:
            h = self.conv_act(self.conv_norm_out(h))
        h = apart(self.conv_out(h), frames)
        return UNetMotionOutput(sample=h) if return_dict else (h,)

    @classmethod
    def from_unet2d(
        cls,
        unet: UNet2DConditionModel,
        motion_adapter: MotionAdapter | None = None,
        load_weights: bool = True,
    ) -> Self:
        """The U-Net over pictures ``unet`` made one over videos, with the motion of ``motion_adapter``.

        Without an adapter the motion modules are random. Raises ``InputError`` where the two do not fit.
        """
        config = _for_videos(unet.config, None if motion_adapter is None else motion_adapter.config)
        model = cls(**config)
        if not load_weights:
            return model.to(unet.dtype)
        weights = dict(unet.state_dict())
        if motion_adapter is not None:
            weights |= _motion(motion_adapter, weights)
        else:
            weights |= {name: value for name, value in model.state_dict().items() if _MOTION in name}
        model.load_state_dict(_widened(weights, model.state_dict()))
        return model.to(unet.dtype)

    def load_motion_modules(self, motion_adapter: MotionAdapter | None) -> None:
        """Take the weights of the motion modules from ``motion_adapter``; those of the other layers stay."""
        assert motion_adapter is not None
        own = self.state_dict()
        self.load_state_dict({**own, **_motion(motion_adapter, own, with_input=False)})

    def save_motion_modules(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the motion modules alone, as a :class:`MotionAdapter`."""
        config = self.config
        adapter = MotionAdapter(
            block_out_channels=config.block_out_channels,
            motion_layers_per_block=config.layers_per_block,
            motion_transformer_layers_per_block=config.temporal_transformer_layers_per_block,
            motion_mid_block_layers_per_block=config.mid_block_layers,
            motion_transformer_layers_per_mid_block=config.temporal_transformer_layers_per_mid_block or 1,
            motion_num_attention_heads=config.motion_num_attention_heads,
            motion_norm_num_groups=config.norm_num_groups,
            motion_max_seq_length=config.motion_max_seq_length,
            use_motion_mid_block=config.use_motion_mid_block,
        )
        adapter.load_state_dict({name: value for name, value in self.state_dict().items() if _MOTION in name})
        adapter.to(self.dtype).save_pretrained(
            save_directory,
            is_main_process=is_main_process,
            safe_serialization=safe_serialization,
            variant=variant,
            push_to_hub=push_to_hub,
            **kwargs,
        )

    def freeze_unet2d_params(self) -> None:
        """Let training change the motion modules alone."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad = _MOTION in name


_MOTION = "motion_modules."
"""What the names of the motion modules' weights have in them."""


def _motion(
    adapter: MotionAdapter, own: dict[str, torch.Tensor], with_input: bool = True
) -> dict[str, torch.Tensor]:
    """The adapter's weights by their names in the U-Net; its first convolution reads latents as ``own`` does."""
    weights = dict(adapter.state_dict())
    more = weights.pop("conv_in.weight", None)
    weights.pop("conv_in.bias", None)
    if more is not None and with_input:
        first = own["conv_in.weight"]
        weights["conv_in.weight"] = torch.cat([first, more[:, first.shape[1] :].to(first)], dim=1)
    return weights


def _widened(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with the embedding of time as wide as this model has it, which cannot be set: by zeros.

    What is added is zero before and after each activation, so the model computes what it did.
    """
    wide = dict(weights)
    for name, value in weights.items():
        if ("time_embedding." in name or "time_emb_proj." in name) and name in own:
            more = [large - small for large, small in zip(own[name].shape, value.shape, strict=True)]
            if min(more) >= 0:
                wide[name] = F.pad(value, [width for size in reversed(more) for width in (0, size)])
    return wide


def _for_videos(config: Config, motion: Config | None) -> dict[str, Any]:
    """The configuration of a U-Net over pictures, and of an adapter, as one over videos has it."""
    entries = {name: config[name] for name in init_parameters(UNetMotionModel) if name in config}
    for name in ("down_block_types", "up_block_types"):
        direction = "Down" if name.startswith("down") else "Up"
        entries[name] = tuple(
            f"CrossAttn{direction}BlockMotion" if "CrossAttn" in block else f"{direction}BlockMotion"
            for block in config[name]
        )
    entries["num_attention_heads"] = config.get("num_attention_heads") or config.attention_head_dim
    if motion is None:
        return entries
    count = len(config.down_block_types)
    if len(motion.block_out_channels) != count:
        raise InputError(
            f"The motion adapter is for {len(motion.block_out_channels)} blocks and the U-Net has {count}."
        )
    layers = motion.motion_layers_per_block
    layers = (layers,) * count if isinstance(layers, int) else tuple(layers)
    if layers != per_stage(config, "layers_per_block"):
        raise InputError(
            f"The motion adapter is for blocks of {layers} layers and the U-Net's have "
            f"{per_stage(config, 'layers_per_block')}."
        )
    return {
        **entries,
        "in_channels": motion.conv_in_channels or config.in_channels,
        "motion_num_attention_heads": motion.motion_num_attention_heads,
        "motion_max_seq_length": motion.motion_max_seq_length,
        "use_motion_mid_block": motion.use_motion_mid_block,
        "layers_per_block": motion.motion_layers_per_block,
        "temporal_transformer_layers_per_mid_block": motion.motion_transformer_layers_per_mid_block,
        "temporal_transformer_layers_per_block": motion.motion_transformer_layers_per_block,
    }


def _layout(config: Config) -> Config:
    """The configuration with what the U-Net over pictures has as entries, and this one has fixed."""
    reverse = config.reverse_transformer_layers_per_block
    if isinstance(reverse, int):
        reverse = (reverse,) * len(config.down_block_types)
    return Config(
        {
            **config,
            "reverse_transformer_layers_per_block": reverse,
            "attention_head_dim": config.num_attention_heads,
            "mid_block_type": "UNetMidBlockCrossAttnMotion"
            if config.use_motion_mid_block
            else "UNetMidBlock2DCrossAttn",
            "resnet_time_scale_shift": "default",
            "flip_sin_to_cos": True,
            "freq_shift": 0,
        }
    )
