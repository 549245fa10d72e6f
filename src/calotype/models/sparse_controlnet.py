"""SparseCtrl: a ControlNet that reads pictures for some frames of a video (https://arxiv.org/abs/2311.16933)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from calotype.core.config import Config
from calotype.core.errors import InputError
from calotype.core.frames import context_of_frames, for_frames, together
from calotype.core.outputs import BaseOutput
from calotype.models.attention_access import AttentionAccess
from calotype.models.control_encoder import (
    ControlNetConditioningEmbedding,
    add_control_encoder,
    attention_arguments,
    control_residuals,
    copy_encoder,
    entries_of_unet,
    weighted,
    zeroed,
)
from calotype.models.modeling import ModelMixin
from calotype.models.unet_2d_condition import UNet2DConditionModel
from calotype.models.unet_conditioning import additive_mask, embed_conditions
from calotype.nn.stage import Conditioning


@dataclass
class SparseControlNetOutput(BaseOutput):
    """What a sparse ControlNet adds to a U-Net's features, frames in the batch.

    ``down_block_res_samples``: one residual (batch·frames, channels, height, width) for each feature kept on the way
    down; ``mid_block_res_sample``: one for the output of the middle.
    """

    down_block_res_samples: list[torch.Tensor] | None
    mid_block_res_sample: torch.Tensor | None


class SparseControlNetModel(AttentionAccess, ModelMixin):
    """The encoder of a U-Net over videos that reads pictures, and gives residuals for all frames.

    It does not see the noisy sample, so frames without a picture follow from the others by the motion modules alone.
    With ``use_simplified_condition_embedding`` the pictures are latents, otherwise they are as many times as large as
    the sample as ``conditioning_embedding_out_channels`` says. With ``concat_conditioning_mask`` the model is told
    which frames have a picture.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("BasicTransformerBlock",)

    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 4,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlockMotion",
            "CrossAttnDownBlockMotion",
            "CrossAttnDownBlockMotion",
            "DownBlockMotion",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 768,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        transformer_layers_per_mid_block: int | tuple[int, ...] | None = None,
        temporal_transformer_layers_per_block: int | tuple[int, ...] = 1,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        use_linear_projection: bool = False,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        global_pool_conditions: bool = False,
        controlnet_conditioning_channel_order: str = "rgb",
        motion_max_seq_length: int = 32,
        motion_num_attention_heads: int | tuple[int, ...] = 8,
        concat_conditioning_mask: bool = True,
        use_simplified_condition_embedding: bool = True,
    ) -> None:
        super().__init__()
        if controlnet_conditioning_channel_order not in ("rgb", "bgr"):
            raise InputError(
                "controlnet_conditioning_channel_order is 'rgb' or 'bgr', not "
                f"{controlnet_conditioning_channel_order!r}."
            )
        channels, first = conditioning_channels + concat_conditioning_mask, block_out_channels[0]
        if not use_simplified_condition_embedding and not conditioning_embedding_out_channels:
            raise InputError(
                "conditioning_embedding_out_channels is empty: without use_simplified_condition_embedding the model "
                "needs the widths of the network that reads its pictures, such as (16, 32, 96, 256)."
            )
        reader: nn.Module = (
            zeroed(nn.Conv2d(channels, first, 3, padding=1))
            if use_simplified_condition_embedding
            else ControlNetConditioningEmbedding(first, channels, conditioning_embedding_out_channels or ())
        )
        add_control_encoder(self, _layout(self.config), "motion", reader)

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A sparse ControlNet to train for ``unet``: its encoder, with its weights unless told otherwise.

        The motion modules are random. Raises ``InputError`` for a U-Net whose encoder no ControlNet can have.
        """
        entries = entries_of_unet(cls, unet)
        entries["down_block_types"] = tuple(
            name.replace("Block2D", "BlockMotion") for name in entries["down_block_types"]
        )
        model = cls(
            **entries,
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=conditioning_embedding_out_channels,
            conditioning_channels=conditioning_channels,
        )
        if load_weights_from_unet:
            copy_encoder(model, unet, without="motion_modules.")
        return model

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float | torch.Tensor = 1.0,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        conditioning_mask: torch.Tensor | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> SparseControlNetOutput | tuple[list[torch.Tensor], torch.Tensor]:
        """The residuals for ``sample`` (batch, in_channels, frames, height, width), of which only the size counts.

        ``controlnet_cond`` (1 or batch, conditioning_channels, frames, f height, f width) holds the pictures, zeros
        where there is none, and ``conditioning_mask`` (…, 1, …) says where there is one. ``encoder_hidden_states`` has
        a row for each video or each frame, or is (batch, frames, tokens, channels). ``guess_mode`` weights the
        residuals from 0.1 to 1 for use without a prompt.
        """
        videos, _, frames = sample.shape[:3]
        temb, _ = embed_conditions(self, sample, timestep, encoder_hidden_states, None, timestep_cond, {})
        mask = additive_mask(attention_mask, sample.dtype)
        given = Conditioning(
            temb=temb.repeat_interleave(frames, dim=0),
            context=context_of_frames(encoder_hidden_states, videos, frames),
            self_mask=for_frames(mask, videos, frames),
            kwargs=attention_arguments(cross_attention_kwargs),
            frames=frames,
        )
        h = self.conv_in(torch.zeros_like(together(sample)))
        features = self.controlnet_cond_embedding(self._pictures(controlnet_cond, conditioning_mask))
        if len(features) not in (frames, len(h)) or features.shape[2:] != h.shape[2:]:
            raise InputError(
                f"controlnet_cond of shape {tuple(controlnet_cond.shape)} does not fit a sample of shape "
                f"{tuple(sample.shape)}: it needs as many frames, for one or all of the videos, in the size that this "
                f"model reads."
            )
        down, mid = weighted(
            control_residuals(self, h + features.repeat(len(h) // len(features), 1, 1, 1), given),
            conditioning_scale,
            guess_mode=guess_mode,
            pool=self.config.global_pool_conditions,
        )
        return SparseControlNetOutput(down, mid) if return_dict else (down, mid)

    def _pictures(self, pictures: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The pictures as the first layer reads them, frames in the batch."""
        channels = self.config.conditioning_channels
        if pictures.ndim != 5 or pictures.shape[1] != channels:
            raise InputError(
                f"controlnet_cond is a tensor (batch, {channels}, frames, height, width), not "
                f"{tuple(pictures.shape)}."
            )
        if self.config.controlnet_conditioning_channel_order == "bgr":
            pictures = pictures.flip(1)
        if self.config.concat_conditioning_mask:
            if mask is None:
                raise InputError("This model is told which frames have a picture: give conditioning_mask.")
            pictures = torch.cat([pictures, mask.to(pictures)], dim=1)
        return together(pictures)


def _layout(config: Config) -> Config:
    """The configuration with what a ControlNet over pictures has as entries, and this one has fixed."""
    return Config(
        {
            **config,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "motion_attends_twice": False,
            "addition_embed_type": None,
            "downsample_padding": 1,  # whatever the entry is, which released code has never read
        }
    )
