"""ControlNet: the encoder half of a U-Net that also reads a picture (https://arxiv.org/abs/2302.05543)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.control_encoder import (
    add_control_encoder,
    attention_arguments,
    control_residuals,
    copy_encoder,
    embed_picture,
    entries_of_unet,
    weighted,
)
from calotype.models.modeling import ModelMixin
from calotype.models.unet_2d_condition import UNet2DConditionModel
from calotype.models.unet_conditioning import (
    additive_mask,
    embed_conditions,
    hidden_type,
    project_context,
)
from calotype.nn.stage import Conditioning


@dataclass
class ControlNetOutput(BaseOutput):
    """What a ControlNet adds to a U-Net's features.

    ``down_block_res_samples``: one residual (batch, channels, height, width) for each feature kept on the way down;
    ``mid_block_res_sample``: one for the output of the middle.
    """

    down_block_res_samples: list[torch.Tensor] | None
    mid_block_res_sample: torch.Tensor | None


class ControlNetModel(AdapterAccess, AttentionAccess, ModelMixin):
    """A copy of a U-Net's encoder that reads a control picture and gives residuals for the U-Net.

    The entries are those of :class:`UNet2DConditionModel`. The picture has ``conditioning_channels`` channels in the
    order ``controlnet_conditioning_channel_order`` ("rgb" or "bgr") and is as many times as large as the sample as
    ``conditioning_embedding_out_channels`` says, a factor of 2 for each width but the first. With
    ``global_pool_conditions`` (shuffle) the residuals are constant over the pixels.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("BasicTransformerBlock",)
    _adapted_as = "controlnet"

    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 3,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        projection_class_embeddings_input_dim: int | None = None,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        global_pool_conditions: bool = False,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        if controlnet_conditioning_channel_order not in ("rgb", "bgr"):
            raise InputError(
                "controlnet_conditioning_channel_order is 'rgb' or 'bgr', not "
                f"{controlnet_conditioning_channel_order!r}."
            )
        if hidden_type(self.config) != encoder_hid_dim_type:
            self.register_to_config(encoder_hid_dim_type=hidden_type(self.config))
        add_control_encoder(self, self.config)

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A ControlNet to train for ``unet``: its encoder, with its weights unless told otherwise.

        Its output is zero until it is trained. Raises ``InputError`` for a U-Net whose encoder no ControlNet can have.
        """
        model = cls(
            **entries_of_unet(cls, unet),
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=conditioning_embedding_out_channels,
            conditioning_channels=conditioning_channels,
        )
        if load_weights_from_unet:
            copy_encoder(model, unet)
        return model

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float | torch.Tensor = 1.0,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[list[torch.Tensor], torch.Tensor]:
        """The residuals for ``sample`` (batch, in_channels, height, width), controlled by ``controlnet_cond``.

        ``controlnet_cond`` (batch, conditioning_channels, f height, f width) is the picture, in [0, 1] for most
        checkpoints. ``conditioning_scale`` is one factor or (batch,). ``guess_mode`` weights the residuals from 0.1
        to 1 for use without a prompt. The other arguments are those of :meth:`UNet2DConditionModel.forward`.
        """
        added = added_cond_kwargs or {}
        temb, _ = embed_conditions(
            self, sample, timestep, encoder_hidden_states, class_labels, timestep_cond, added
        )
        given = Conditioning(
            temb=temb,
            context=project_context(self, encoder_hidden_states, added),
            self_mask=additive_mask(attention_mask, sample.dtype),
            kwargs=attention_arguments(cross_attention_kwargs),
        )
        if self.config.controlnet_conditioning_channel_order == "bgr":
            controlnet_cond = controlnet_cond.flip(1)
        h = self.conv_in(sample)
        h = h + embed_picture(self, controlnet_cond, h)
        down, mid = weighted(
            control_residuals(self, h, given),
            conditioning_scale,
            guess_mode=guess_mode,
            pool=self.config.global_pool_conditions,
        )
        return ControlNetOutput(down, mid) if return_dict else (down, mid)
