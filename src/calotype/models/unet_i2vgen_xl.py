"""The U-Net of I2VGen-XL, which makes videos of a picture and a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from calotype.core.config import Config
from calotype.core.errors import InputError
from calotype.core.frames import apart, together
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.feed_forward_access import FeedForwardAccess
from calotype.models.freeu_access import FreeUAccess
from calotype.models.modeling import ModelMixin
from calotype.models.unet_3d_condition import HEADS_AT_FIRST, UNet3DConditionOutput, layout_of
from calotype.models.unet_conditioning import add_conditioning, embed_conditions
from calotype.models.unet_layout import check_layout, down_stages, mid_stage_of, per_stage, up_stages
from calotype.nn.attention import Attention
from calotype.nn.feed_forward import FeedForward
from calotype.nn.stage import Conditioning
from calotype.nn.temporal import TemporalTransformer
from calotype.nn.unet_paths import through

PICTURE_CHANNELS = 4
"""Channels of the latents of the picture."""

_CONTEXT_SIDE = 32
"""The picture's latents are averaged to this height and width before they become tokens."""


class FrameEncoder(nn.Module):
    """Attention along time and a feed-forward that no norm precedes, each added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads=2, dim_head=channels)
        self.ff = FeedForward(channels, activation_fn="gelu", inner_dim=4 * channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, frames, channels) -> the same."""
        tokens = tokens + self.attn1(self.norm1(tokens))
        return tokens + self.ff(tokens)


class I2VGenXLUNet(AdapterAccess, AttentionAccess, FreeUAccess, FeedForwardAccess, ModelMixin):
    """A U-Net over videos that reads a text and a picture in three forms (https://arxiv.org/abs/2311.04145).

    Each frame attends to the text, to the picture's latents and to CLIP's embedding of it; the latents stand beside
    those of the first frame, too. ``attention_head_dim`` is the width of a head; ``num_attention_heads``, which
    published configurations have, has never had a meaning.
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
        norm_num_groups: int | None = 32,
        cross_attention_dim: int = 1024,
        attention_head_dim: int | tuple[int, ...] = 64,
        num_attention_heads: int | tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if norm_num_groups is None:
            raise InputError("norm_num_groups cannot be None: this U-Net has group norms in any case.")
        layout = _layout(self.config)
        check_layout(layout, along_time="layers")
        first = block_out_channels[0]

        self.conv_in = nn.Conv2d(2 * in_channels, first, 3, padding=1)
        self.transformer_in = TemporalTransformer(
            HEADS_AT_FIRST, per_stage(layout, "attention_head_dim")[0], first, norm_num_groups=norm_num_groups
        )
        inner = 4 * in_channels
        self.image_latents_proj_in = nn.Sequential(
            nn.Conv2d(PICTURE_CHANNELS, inner, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(inner, in_channels, 3, padding=1),
        )
        self.image_latents_temporal_encoder = FrameEncoder(in_channels)
        self.image_latents_context_embedding = nn.Sequential(
            nn.Conv2d(PICTURE_CHANNELS, 8 * in_channels, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(_CONTEXT_SIDE),
            nn.Conv2d(8 * in_channels, 16 * in_channels, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16 * in_channels, cross_attention_dim, 3, stride=2, padding=1),
        )
        temb_channels = add_conditioning(self, layout)
        self.context_embedding = nn.Sequential(
            nn.Linear(cross_attention_dim, temb_channels),
            nn.SiLU(),
            nn.Linear(temb_channels, in_channels * cross_attention_dim),
        )
        self.fps_embedding = nn.Sequential(
            nn.Linear(first, temb_channels), nn.SiLU(), nn.Linear(temb_channels, temb_channels)
        )
        self.down_blocks = down_stages(layout, temb_channels)
        self.mid_block = mid_stage_of(layout, temb_channels)
        self.up_blocks = up_stages(layout, temb_channels)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=1e-5)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        fps: torch.Tensor,
        image_latents: torch.Tensor,
        image_embeddings: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[torch.Tensor]:
        """(batch, in_channels, frames, height, width) at ``timestep`` -> ``UNet3DConditionOutput``.

        ``fps`` (batch,) is frames a second; ``image_latents`` (batch, 4, frames, height, width) has the picture in its
        first frame; ``image_embeddings`` (batch, 1, channels) and ``encoder_hidden_states`` (batch, tokens, channels)
        are what CLIP sees and reads. Raises ``InputError`` where one of these does not fit, and for ``timestep_cond``,
        which this U-Net has no weights for.
        """
        if timestep_cond is not None:
            raise InputError("timestep_cond means nothing to I2VGenXLUNet; leave it out.")
        self._check(sample, fps, image_latents, image_embeddings, encoder_hidden_states)
        assert image_embeddings is not None and encoder_hidden_states is not None
        frames = sample.shape[2]
        temb, _ = embed_conditions(self, sample, timestep, encoder_hidden_states, None, None, {})
        temb = temb + self.fps_embedding(self.time_proj(fps).to(sample.dtype))
        seen = self.image_latents_context_embedding(image_latents[:, :, 0]).flatten(2).transpose(1, 2)
        known = self.context_embedding(image_embeddings).view(len(sample), -1, seen.shape[-1])
        context = torch.cat([encoder_hidden_states, seen, known], dim=1)
        kwargs = {k: v for k, v in (cross_attention_kwargs or {}).items() if k != "scale"} or None
        given = Conditioning(
            temb=temb.repeat_interleave(frames, dim=0),
            context=context.repeat_interleave(frames, dim=0),
            kwargs=kwargs,
            frames=frames,
        )
        h = together(torch.cat([sample, self._beside(image_latents)], dim=1))
        h = through(self, [self.transformer_in(self.conv_in(h), frames, kwargs)], given)
        h = apart(self.conv_out(self.conv_act(self.conv_norm_out(h))), frames)
        return UNet3DConditionOutput(sample=h) if return_dict else (h,)

    def _beside(self, image_latents: torch.Tensor) -> torch.Tensor:
        """The picture's latents as they stand beside the sample's, (batch, in_channels, frames, height, width)."""
        videos, _, frames, height, width = image_latents.shape
        projected = apart(self.image_latents_proj_in(together(image_latents)), frames)
        tokens = self.image_latents_temporal_encoder(projected.permute(0, 3, 4, 2, 1).flatten(0, 2))
        return tokens.unflatten(0, (videos, height, width)).permute(0, 4, 3, 1, 2)

    def _check(
        self,
        sample: torch.Tensor,
        fps: torch.Tensor,
        image_latents: torch.Tensor,
        image_embeddings: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
    ) -> None:
        rows, width = len(sample), self.config.cross_attention_dim
        if tuple(fps.shape) != (rows,):
            raise InputError(f"fps must be ({rows},), a number for each video, not {tuple(fps.shape)}.")
        if tuple(image_latents.shape) != (rows, PICTURE_CHANNELS, *sample.shape[2:]):
            raise InputError(
                f"image_latents must be {(rows, PICTURE_CHANNELS, *sample.shape[2:])} for this sample, not "
                f"{tuple(image_latents.shape)}."
            )
        for name, value in (
            ("image_embeddings", image_embeddings),
            ("encoder_hidden_states", encoder_hidden_states),
        ):
            if value is None or value.ndim != 3 or (len(value), value.shape[2]) != (rows, width):
                found = None if value is None else tuple(value.shape)
                raise InputError(
                    f"{name} must be ({rows}, tokens, {width}), a row for each video, not {found}."
                )


def _layout(config: Config) -> Config:
    """The configuration with what other U-Nets over videos have as entries, and this one has fixed."""
    fixed = {"act_fn": "silu", "norm_eps": 1e-5, "downsample_padding": 1, "mid_block_scale_factor": 1.0}
    return layout_of(Config({**config, **fixed}))
