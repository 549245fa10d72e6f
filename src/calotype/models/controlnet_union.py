"""ControlNet Union, one ControlNet for many kinds of pictures (ControlNet++, https://github.com/xinsir6/ControlNetPlus)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.models.adapter_access import AdapterAccess
from calotype.models.attention_access import AttentionAccess
from calotype.models.control_encoder import (
    add_control_encoder,
    attention_arguments,
    check_counts,
    control_residuals,
    copy_encoder,
    embed_picture,
    entries_of_unet,
    weighted,
    zeroed,
)
from calotype.models.controlnet import ControlNetOutput
from calotype.models.modeling import ModelMixin
from calotype.models.unet_2d_condition import UNet2DConditionModel
from calotype.models.unet_conditioning import additive_mask, embed_conditions
from calotype.nn.embeddings import TimestepEmbedding, Timesteps
from calotype.nn.scaling import scaled
from calotype.nn.stage import Conditioning


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.c_fc(x)
        return self.c_proj(h * torch.sigmoid(1.702 * h))


class _FusionBlock(nn.Module):
    """A transformer block over (batch, pictures, width).

    It attends along the batch, for each picture apart: so the weights were trained. Samples of one batch therefore
    influence each other unless they have the same pictures.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _FeedForward(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ControlNetUnionModel(AdapterAccess, AttentionAccess, ModelMixin):
    """A ControlNet that takes several pictures, each of one of ``num_control_type`` kinds.

    A small transformer of ``num_trans_layer`` layers weighs the pictures against each other and the sample. The other
    entries are those of :class:`ControlNetModel`.
    """

    _supports_gradient_checkpointing = True
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
        conditioning_embedding_out_channels: tuple[int, ...] | None = (48, 96, 192, 384),
        global_pool_conditions: bool = False,
        addition_embed_type_num_heads: int = 64,
        num_control_type: int = 6,
        num_trans_channel: int = 320,
        num_trans_head: int = 8,
        num_trans_layer: int = 1,
        num_proj_channel: int = 320,
    ) -> None:
        super().__init__()
        if encoder_hid_dim is not None or encoder_hid_dim_type is not None:
            raise InputError(
                "A ControlNetUnionModel reads the context as it is: encoder_hid_dim and encoder_hid_dim_type are None."
            )
        if controlnet_conditioning_channel_order != "rgb":
            raise InputError(
                "controlnet_conditioning_channel_order of a ControlNetUnionModel is 'rgb', not "
                f"{controlnet_conditioning_channel_order!r}."
            )
        if addition_time_embed_dim is None:
            raise InputError(
                "A ControlNetUnionModel needs an addition_time_embed_dim, to embed the kinds of pictures."
            )
        if not num_trans_channel == num_proj_channel == block_out_channels[0]:
            raise InputError(
                f"num_trans_channel={num_trans_channel}, num_proj_channel={num_proj_channel} and the first of "
                f"block_out_channels, {block_out_channels[0]}, must be equal: their features are added."
            )
        if num_trans_channel % num_trans_head:
            raise InputError(
                f"num_trans_channel={num_trans_channel} cannot be split into {num_trans_head} heads."
            )
        add_control_encoder(self, self.config)
        self.task_embedding = nn.Parameter(
            num_trans_channel**0.5 * torch.randn(num_control_type, num_trans_channel)
        )
        self.transformer_layes = nn.ModuleList(  # spelt as in the files
            _FusionBlock(num_trans_channel, num_trans_head) for _ in range(num_trans_layer)
        )
        self.spatial_ch_projs = zeroed(nn.Linear(num_trans_channel, num_proj_channel))
        self.control_type_proj = Timesteps(addition_time_embed_dim, flip_sin_to_cos, freq_shift)
        self.control_add_embedding = TimestepEmbedding(
            addition_time_embed_dim * num_control_type, 4 * block_out_channels[0]
        )

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
    ) -> Self:
        """A ControlNet Union to train for ``unet``, as :meth:`ControlNetModel.from_unet`."""
        entries = entries_of_unet(cls, unet)
        width = entries["block_out_channels"][0]
        model = cls(
            **entries,
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=conditioning_embedding_out_channels,
            num_trans_channel=width,
            num_proj_channel=width,
        )
        if load_weights_from_unet:
            copy_encoder(model, unet)
        return model

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: list[torch.Tensor],
        control_type: torch.Tensor,
        control_type_idx: list[int],
        conditioning_scale: float | list[float] = 1.0,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        from_multi: bool = False,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[list[torch.Tensor], torch.Tensor]:
        """The residuals for ``sample``, controlled by the pictures ``controlnet_cond``.

        Picture ``i`` is of kind ``control_type_idx[i]`` and weighs ``conditioning_scale[i]``; ``control_type`` (batch,
        num_control_type) has 1 for the kinds that are given. Several pictures are weighted as they come in; a
        single one, and with ``from_multi`` the first, as the residuals go out. The other arguments are those
        of :meth:`ControlNetModel.forward`.
        """
        count = len(control_type_idx)
        if not isinstance(conditioning_scale, list | tuple):
            conditioning_scale = [conditioning_scale] * count
        check_counts(
            count, "pictures", controlnet_cond=controlnet_cond, conditioning_scale=conditioning_scale
        )
        self._check_kinds(control_type_idx)
        at_the_end = from_multi or count == 1
        temb, _ = embed_conditions(
            self,
            sample,
            timestep,
            encoder_hidden_states,
            class_labels,
            timestep_cond,
            added_cond_kwargs or {},
        )
        given = Conditioning(
            temb=temb + self._embed_kinds(control_type, temb),
            context=encoder_hidden_states,
            self_mask=additive_mask(attention_mask, sample.dtype),
            kwargs=attention_arguments(cross_attention_kwargs),
        )
        h = self.conv_in(sample)
        scales = [1.0] * count if at_the_end else list(conditioning_scale)
        h = h + self._fuse(
            h, [embed_picture(self, picture, h) for picture in controlnet_cond], control_type_idx, scales
        )
        down, mid = weighted(
            control_residuals(self, h, given),
            conditioning_scale[0] if at_the_end else 1.0,
            guess_mode=guess_mode,
            pool=self.config.global_pool_conditions,
        )
        return ControlNetOutput(down, mid) if return_dict else (down, mid)

    def _fuse(
        self, h: torch.Tensor, pictures: Sequence[torch.Tensor], kinds: Sequence[int], scales: Sequence[float]
    ) -> torch.Tensor:
        """The sum of the pictures' features, each shifted by what the transformer makes of all their means."""
        tokens = [
            scaled(picture.mean(dim=(2, 3)) + self.task_embedding[kind], scale)
            for picture, kind, scale in zip(pictures, kinds, scales, strict=True)
        ]
        x = torch.stack([*tokens, h.mean(dim=(2, 3))], dim=1)
        for block in self.transformer_layes:
            x = block(x)
        shifts = self.spatial_ch_projs(x)
        total = torch.zeros_like(h)
        for index, (picture, scale) in enumerate(zip(pictures, scales, strict=True)):
            total = total + scaled(picture + shifts[:, index, :, None, None], scale)
        return total

    def _embed_kinds(self, control_type: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        kinds, batch = self.config.num_control_type, temb.shape[0]
        if control_type.shape[-1] != kinds or control_type.numel() not in (kinds, batch * kinds):
            raise InputError(
                f"control_type has the shape {tuple(control_type.shape)}: it needs {kinds} values, one for each kind "
                f"of picture, for each of the {batch} samples."
            )
        features = self.control_type_proj(control_type.flatten()).reshape(
            -1, kinds * self.config.addition_time_embed_dim
        )
        return self.control_add_embedding(features.to(temb.dtype))

    def _check_kinds(self, kinds: Sequence[int]) -> None:
        count = self.config.num_control_type
        for kind in kinds:
            if not 0 <= kind < count:
                raise InputError(
                    f"control_type_idx has {kind}: the kinds of this model are 0 to {count - 1}."
                )
