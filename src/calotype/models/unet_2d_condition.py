"""The U-Net that reads a context: Stable Diffusion 1, 2 and XL, DeepFloyd IF, Kandinsky 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.attention_addons import MergesTokens, SharesStyle
from calotype.models.freeu_access import FreeUAccess
from calotype.models.modeling import ModelMixin
from calotype.models.unet_conditioning import (
    add_conditioning,
    additive_mask,
    embed_conditions,
    hidden_type,
    image_prompts,
    project_context,
)
from calotype.models.unet_layout import check_layout, down_stages, mid_stage_of, up_stages
from calotype.nn.activations import activation
from calotype.nn.norms import activated_norm
from calotype.nn.stage import Conditioning
from calotype.nn.unet_paths import Added, through


@dataclass
class UNet2DConditionOutput(BaseOutput):
    """``sample`` (batch, out_channels, height, width)."""

    sample: torch.Tensor | None = None


class UNet2DConditionModel(
    AdapterAccess, AttentionAccess, FreeUAccess, MergesTokens, SharesStyle, ModelMixin
):
    """A U-Net over pictures or latents that attends to a context (https://arxiv.org/abs/2112.10752).

    Entries that may differ between stages are one value or one for each of ``down_block_types``.
    ``attention_head_dim`` is the number of heads in the blocks with transformers, whatever its name says; in the others
    it is the width of a head.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("BasicTransformerBlock", "ResnetBlock2D", "UpStage")
    _repeated_blocks = ("BasicTransformerBlock",)

    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1,
        reverse_transformer_layers_per_block: tuple[tuple[int, ...], ...] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        if num_attention_heads is not None:
            raise InputError(
                "num_attention_heads cannot be set: give the number of heads as attention_head_dim, which is the "
                "entry that checkpoints have for it."
            )
        config = self.config
        check_layout(config)
        if hidden_type(config) != config.encoder_hid_dim_type:
            self.register_to_config(encoder_hid_dim_type=hidden_type(config))
        first = block_out_channels[0]

        self.conv_in = nn.Conv2d(in_channels, first, conv_in_kernel, padding=(conv_in_kernel - 1) // 2)
        temb_channels = add_conditioning(self, self.config)
        self.down_blocks = down_stages(config, temb_channels)
        self.mid_block = mid_stage_of(config, temb_channels)
        self.up_blocks = up_stages(config, temb_channels)
        self.conv_norm_out: nn.GroupNorm | None = None
        self.conv_act: nn.Module | None = None
        if norm_num_groups is not None:
            self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=norm_eps)
            self.conv_act = activation(act_fn)
        self.conv_out = nn.Conv2d(first, out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        down_block_additional_residuals: tuple[torch.Tensor, ...] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        down_intrablock_additional_residuals: tuple[torch.Tensor, ...] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """The network's prediction for ``sample`` (batch, in_channels, height, width) at ``timestep``.

        ``timestep`` is one number or (batch,); ``encoder_hidden_states`` (batch, tokens, channels) is the context.
        Masks (batch, n) have 1 for what is seen. ``added_cond_kwargs`` holds what ``addition_embed_type`` and
        ``encoder_hid_dim_type`` ask for. The residuals of a ControlNet come in pairs of ``down_block_...`` and
        ``mid_block_...``, those of a T2I-Adapter as ``down_intrablock_...``. Raises ``InputError`` for conditions
        that are missing or that the model cannot use.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        added = added_cond_kwargs or {}
        temb, hint = embed_conditions(
            self, sample, timestep, encoder_hidden_states, class_labels, timestep_cond, added
        )
        given = Conditioning(
            temb=temb,
            context=project_context(self, encoder_hidden_states, added),
            self_mask=additive_mask(attention_mask, sample.dtype),
            context_mask=additive_mask(encoder_attention_mask, sample.dtype),
            kwargs=self._attention_arguments(cross_attention_kwargs, added),
        )
        inside: tuple[torch.Tensor, ...] = tuple(down_intrablock_additional_residuals or ())
        across = down_block_additional_residuals
        if across is not None and mid_block_additional_residual is None and not inside:
            # an adapter's residuals under their old name
            inside, across = tuple(across), None

        beside = Added(inside)
        if across is not None and mid_block_additional_residual is not None:
            beside = Added(inside, across, mid_block_additional_residual)
        features = [self.conv_in(sample if hint is None else torch.cat([sample, hint], dim=1))]
        h = through(self, features, given, beside)

        if self.conv_norm_out is not None and self.conv_act is not None:
            h = activated_norm(h, self.conv_norm_out, self.conv_act)
        h = self.conv_out(h)
        return UNet2DConditionOutput(sample=h) if return_dict else (h,)

    def _attention_arguments(
        self, given: Mapping[str, Any] | None, added: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The arguments of the attention layers; grounding and picture tokens are made here, once for all blocks."""
        arguments = {key: value for key, value in (given or {}).items() if key != "scale"}
        arguments = image_prompts(self, arguments, added)
        if arguments.get("gligen") is not None:
            if self.config.attention_type == "default":
                raise InputError(
                    "cross_attention_kwargs has 'gligen' but this model's attention_type is 'default': it was not "
                    "trained for grounding."
                )
            arguments["gligen"] = {"objs": self.position_net(**arguments["gligen"])}
        return arguments or None
