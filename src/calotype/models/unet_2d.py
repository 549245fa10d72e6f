"""The U-Net without a context: DDPM, DDIM, latent diffusion, score models (NCSN++)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from calotype.core.config import Config
from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.models.modeling import ModelMixin
from calotype.models.unet_conditioning import as_times, embed_class
from calotype.nn.embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps
from calotype.nn.skip_stage import SkipDownStage, SkipUpStage
from calotype.nn.stage import Conditioning, UpStage
from calotype.nn.stage_parts import StageSettings
from calotype.nn.stage_table import (
    DOWN,
    UP,
    down_stage,
    lookup,
    mid_stage,
    up_stage,
)
from calotype.nn.unet_paths import odd_size, through

_CLASS_TYPES = ("timestep", "identity")


@dataclass
class UNet2DOutput(BaseOutput):
    """``sample`` (batch, out_channels, height, width)."""

    sample: torch.Tensor | None = None


class UNet2DModel(ModelMixin):
    """A U-Net over pictures, told the time and perhaps a class (https://arxiv.org/abs/2006.11239).

    ``attention_head_dim`` is the width of a head (None: one head). ``downsample_type`` and ``upsample_type`` ("conv" or
    "resnet") are read by the blocks with attention.
    """

    _supports_gradient_checkpointing = True

    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = (
            "DownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = (
            "AttnUpBlock2D",
            "AttnUpBlock2D",
            "AttnUpBlock2D",
            "UpBlock2D",
        ),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        super().__init__()
        config = self.config
        _check(config)
        first = block_out_channels[0]
        time_dim = time_embedding_dim or 4 * first

        self.conv_in = nn.Conv2d(in_channels, first, kernel_size=3, padding=1)
        self.time_proj, input_dim = _time_projection(config)
        self.time_embedding = TimestepEmbedding(input_dim, time_dim)
        self.class_embedding = _class_embedding(config, input_dim, time_dim)
        settings = StageSettings(
            temb_channels=time_dim,
            dropout=dropout,
            eps=norm_eps,
            act_fn=act_fn,
            groups=norm_num_groups,
            time_norm=resnet_time_scale_shift,
            head_dim=attention_head_dim,
            downsample_padding=downsample_padding,
        )
        self.down_blocks = _down_stages(config, settings)
        self.mid_block = _mid_stage(config, settings)
        self.up_blocks = _up_stages(config, settings)
        groups_out = norm_num_groups if norm_num_groups is not None else min(first // 4, 32)
        self.conv_norm_out = nn.GroupNorm(groups_out, first, eps=norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(first, out_channels, kernel_size=3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """The network's prediction for ``sample`` (batch, in_channels, height, width) at ``timestep``.

        ``timestep`` is one number or (batch,), for score models the noise level; ``class_labels`` (batch,) are needed
        by a model with classes, and an error (``InputError``) for one without.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        times = as_times(timestep, sample)
        temb = self.time_embedding(self.time_proj(times).to(self.conv_in.weight.dtype))
        class_embedding = embed_class(self, temb, class_labels)
        if class_embedding is not None:
            temb = temb + class_embedding
        elif class_labels is not None:
            raise InputError("class_labels were given to a model that was not trained with classes.")

        h, drawn = self._stages(sample, temb)
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        if drawn is not None:
            h = h + drawn
        if self.config.time_embedding_type == "fourier":
            h = h / times.reshape(-1, 1, 1, 1).to(h.dtype)  # a score's size is the inverse of the noise level
        return UNet2DOutput(sample=h) if return_dict else (h,)

    def _stages(self, sample: torch.Tensor, temb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Down, middle and up; with NCSN++ blocks also the picture that was drawn on the way up."""
        given = Conditioning(temb=temb)
        picture = sample
        h = self.conv_in(sample)
        if not any(
            isinstance(stage, SkipDownStage | SkipUpStage) for stage in (*self.down_blocks, *self.up_blocks)
        ):
            return through(self, [h], given), None
        kept = [h]
        for stage in self.down_blocks:
            if isinstance(stage, SkipDownStage):
                h, features, picture = stage(h, picture, temb)
            else:
                h, features = stage(h, given)
            kept += features
        if self.mid_block is not None:
            h = self.mid_block(h, given)
        drawn: torch.Tensor | None = None
        for stage in self.up_blocks:
            count = len(cast(UpStage, stage).resnets)
            taken, kept = kept[-count:], kept[:-count]
            if isinstance(stage, SkipUpStage):
                h, drawn = stage(h, taken, drawn, temb)
            else:
                h = stage(h, taken, given, odd_size(h, kept))
        return h, drawn


def _check(config: Config) -> None:
    count = len(config.down_block_types)
    for name in ("up_block_types", "block_out_channels"):
        if len(config[name]) != count:
            raise InputError(
                f"{name} has {len(config[name])} entries {config[name]} and down_block_types has {count}: both "
                f"need one for each stage."
            )
    for name in ("downsample_type", "upsample_type"):
        if config[name] not in ("conv", "resnet", None):
            raise InputError(f"{name} is 'conv' or 'resnet', not {config[name]!r}.")
    for name, table in (("down_block_types", DOWN), ("up_block_types", UP)):
        for block in config[name]:
            if lookup(block, table, name).attention not in (None, "pixels"):
                raise InputError(
                    f"{name} has {block!r}, which attends to a context: use UNet2DConditionModel."
                )
    if config.mid_block_type not in ("UNetMidBlock2D", None):
        raise InputError(f"mid_block_type is 'UNetMidBlock2D' or None, not {config.mid_block_type!r}.")


def _time_projection(config: Config) -> tuple[nn.Module, int]:
    """The features of the time, and how many they are."""
    width, kind = config.block_out_channels[0], config.time_embedding_type
    if kind == "positional":
        return Timesteps(width, config.flip_sin_to_cos, config.freq_shift), width
    if kind == "fourier":
        return GaussianFourierProjection(embedding_size=width, scale=16), 2 * width
    if kind == "learned":
        if config.num_train_timesteps is None:
            raise InputError("time_embedding_type='learned' needs a value for num_train_timesteps.")
        return nn.Embedding(config.num_train_timesteps, width), width
    raise InputError(f"time_embedding_type is 'positional', 'fourier' or 'learned', not {kind!r}.")


def _class_embedding(config: Config, input_dim: int, time_dim: int) -> nn.Module | None:
    kind = config.class_embed_type
    if kind is None:
        count = config.num_class_embeds
        return None if count is None else nn.Embedding(count, time_dim)
    if kind not in _CLASS_TYPES:
        raise InputError(f"class_embed_type is None or one of {', '.join(_CLASS_TYPES)}, not {kind!r}.")
    return TimestepEmbedding(input_dim, time_dim) if kind == "timestep" else nn.Identity()


def _down_stages(config: Config, settings: StageSettings) -> nn.ModuleList:
    widths = (config.block_out_channels[0], *config.block_out_channels)
    last = len(config.down_block_types) - 1
    settings = replace(settings, resample_type=config.downsample_type)
    return nn.ModuleList(
        down_stage(
            name,
            settings,
            (widths[index], widths[index + 1]),
            config.layers_per_block,
            resamples=index < last,
        )
        for index, name in enumerate(config.down_block_types)
    )


def _mid_stage(config: Config, settings: StageSettings) -> nn.Module | None:
    if config.mid_block_type is None:
        return None
    groups = config.attn_norm_num_groups
    if groups is None:
        # a norm that the time scales and shifts stands in for the one before attention
        groups = settings.groups if config.resnet_time_scale_shift == "default" else 0
    settings = replace(settings, output_scale_factor=config.mid_block_scale_factor, attn_groups=groups)
    return mid_stage(
        config.mid_block_type,
        settings,
        config.block_out_channels[-1],
        add_attention=config.add_attention,
    )


def _up_stages(config: Config, settings: StageSettings) -> nn.ModuleList:
    widths = config.block_out_channels
    last = len(widths) - 1
    settings = replace(settings, resample_type=config.upsample_type)
    return nn.ModuleList(
        up_stage(
            name,
            settings,
            (
                widths[min(last - index + 1, last)],
                widths[last - index],
                widths[max(last - index - 1, 0)],
            ),
            config.layers_per_block + 1,
            resamples=index < last,
        )
        for index, name in enumerate(config.up_block_types)
    )
