"""The U-Net of Stable Video Diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from calotype.core.config import Config
from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.feed_forward_access import FeedForwardAccess
from calotype.models.modeling import ModelMixin
from calotype.models.unet_conditioning import as_times
from calotype.models.unet_layout import check_layout, down_stages, mid_stage_of, up_stages
from calotype.nn.embeddings import TimestepEmbedding, Timesteps
from calotype.nn.stage import Conditioning
from calotype.nn.unet_paths import through

_GROUPS = 32


@dataclass
class UNetSpatioTemporalConditionOutput(BaseOutput):
    """``sample`` (batch, frames, out_channels, height, width)."""

    sample: torch.Tensor | None = None


class UNetSpatioTemporalConditionModel(AdapterAccess, AttentionAccess, FeedForwardAccess, ModelMixin):
    """A U-Net over videos that attends to a picture's embedding (https://arxiv.org/abs/2311.15127).

    Each of its layers works on the frames and then along time. ``num_frames`` is how many frames it was trained with;
    it takes any number.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = (
        "BasicTransformerBlock",
        "TemporalTransformerBlock",
        "SpatioTemporalResnet",
        "UpStage",
    )
    _repeated_blocks = ("BasicTransformerBlock", "TemporalTransformerBlock")

    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 8,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types: tuple[str, ...] = (
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
        ),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int = 768,
        layers_per_block: int | tuple[int, ...] = 2,
        cross_attention_dim: int | tuple[int, ...] = 1024,
        transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1,
        num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20),
        num_frames: int = 25,
    ) -> None:
        super().__init__()
        layout = _layout(self.config)
        check_layout(layout, along_time="mixed")
        first = block_out_channels[0]
        temb_channels = 4 * first

        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, temb_channels)
        self.add_time_proj = Timesteps(addition_time_embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.add_embedding = TimestepEmbedding(projection_class_embeddings_input_dim, temb_channels)
        self.down_blocks = down_stages(layout, temb_channels)
        self.mid_block = mid_stage_of(layout, temb_channels)
        self.up_blocks = up_stages(layout, temb_channels)
        self.conv_norm_out = nn.GroupNorm(_GROUPS, first, eps=1e-5)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        added_time_ids: torch.Tensor,
        return_dict: bool = True,
    ) -> UNetSpatioTemporalConditionOutput | tuple[torch.Tensor]:
        """The network's prediction for ``sample`` (batch, frames, in_channels, height, width) at ``timestep``.

        ``timestep`` is one number or (batch,); ``encoder_hidden_states`` (batch, tokens, channels) is the context;
        ``added_time_ids`` (batch, n) are numbers about the video: frames a second less one, motion, noise. Raises
        ``InputError`` for shapes that do not fit.
        """
        self._check(sample, encoder_hidden_states, added_time_ids)
        videos, frames = sample.shape[:2]
        # sinusoids are float32 whatever the weights are; only then is precision given up
        time = self.time_proj(as_times(timestep, sample)).to(sample.dtype)
        numbers = self.add_time_proj(added_time_ids.flatten()).reshape(videos, -1).to(sample.dtype)
        given = Conditioning(
            temb=self.time_embedding(time) + self.add_embedding(numbers),
            context=encoder_hidden_states,
            frames=frames,
        )
        h = through(self, [self.conv_in(sample.flatten(0, 1))], given)
        h = self.conv_out(self.conv_act(self.conv_norm_out(h))).unflatten(0, (videos, frames))
        return UNetSpatioTemporalConditionOutput(sample=h) if return_dict else (h,)

    def _check(self, sample: torch.Tensor, context: torch.Tensor, numbers: torch.Tensor) -> None:
        config = self.config
        if sample.ndim != 5 or sample.shape[2] != config.in_channels:
            raise InputError(
                f"UNetSpatioTemporalConditionModel takes a sample (batch, frames, {config.in_channels}, height, "
                f"width), not {tuple(sample.shape)}."
            )
        if context.ndim != 3 or len(context) != len(sample):
            raise InputError(
                f"encoder_hidden_states must be ({len(sample)}, tokens, channels), a row for each video, not "
                f"{tuple(context.shape)}."
            )
        expected = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
        if tuple(numbers.shape) != (len(sample), expected):
            raise InputError(
                f"added_time_ids must be ({len(sample)}, {expected}) for this model, not {tuple(numbers.shape)}."
            )


def _layout(config: Config) -> Config:
    """The configuration with what the U-Net over pictures has as entries, and this one has fixed."""
    return Config(
        {
            **config,
            "act_fn": "silu",
            "norm_num_groups": _GROUPS,
            "norm_eps": 1e-5,
            "resnet_time_scale_shift": "default",
            "mid_block_type": "UNetMidBlockSpatioTemporal",
            "mid_block_scale_factor": 1.0,
        }
    )
