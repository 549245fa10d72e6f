"""The encoder half of a U-Net with a control picture: what all ControlNets have (https://arxiv.org/abs/2302.05543).

As with the conditioning of a U-Net, the modules are attributes of the model itself, since their names are the keys of
checkpoints; so these are functions of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from calotype.core.config import Config, init_parameters
from calotype.core.errors import InputError
from calotype.models.unet_2d_condition import UNet2DConditionModel
from calotype.models.unet_conditioning import add_conditioning
from calotype.models.unet_layout import check_layout, down_stages, mid_stage_of
from calotype.models.unet_paths import down_path
from calotype.nn.scaling import scaled
from calotype.nn.stage import Conditioning, DownStage

Scale = float | torch.Tensor
Residuals = tuple[list[torch.Tensor], torch.Tensor]
"""What is added to the features that a U-Net keeps on its way down, and to those of its middle."""

_ADDITIONS = (None, "text", "text_image", "text_time")

_NOT_IN_A_CONTROLNET = {
    "sample_size",
    "out_channels",
    "up_block_types",
    "reverse_transformer_layers_per_block",
    "conv_out_kernel",
    "dropout",
    "time_cond_proj_dim",
    "mid_block_only_cross_attention",
}
"""Entries of a U-Net's configuration that a ControlNet can do without."""

Model = TypeVar("Model", bound=nn.Module)


class ControlNetConditioningEmbedding(nn.Module):
    """A picture to features of the latents' size: a small network that halves it once for each width but the first.

    Its last convolution is zero at first.
    """

    def __init__(
        self,
        conditioning_embedding_channels: int,
        conditioning_channels: int = 3,
        block_out_channels: Sequence[int] = (16, 32, 96, 256),
    ) -> None:
        super().__init__()
        self.conv_in = _conv(conditioning_channels, block_out_channels[0])
        self.blocks = nn.ModuleList()
        for width, next_width in pairwise(block_out_channels):
            self.blocks.extend([_conv(width, width), _conv(width, next_width, stride=2)])
        self.conv_out = zeroed(_conv(block_out_channels[-1], conditioning_embedding_channels))

    def forward(self, conditioning: torch.Tensor) -> torch.Tensor:
        """(batch, conditioning_channels, height, width) -> (batch, channels, height / f, width / f)."""
        h = conditioning
        for conv in (self.conv_in, *self.blocks):
            h = F.silu(conv(h))
        return self.conv_out(h)


def _conv(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, stride=stride)


def zeroed(module: Model) -> Model:
    """``module`` with all its weights zero, so that what it is added to begins unchanged."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def add_control_encoder(
    model: Any, config: Config, along_time: str | None = None, reader: nn.Module | None = None
) -> None:
    """Give ``model`` the encoder half of the U-Net that ``config`` describes, and its zero convolutions.

    ``along_time`` is what its blocks have for videos; ``reader`` reads the control picture, in place of the network
    that the configuration describes.
    """
    check_layout(config, along_time)
    if reader is None and not config.conditioning_embedding_out_channels:
        raise InputError(
            "conditioning_embedding_out_channels is empty: a ControlNet needs the widths of the network that reads "
            "its control picture, such as (16, 32, 96, 256) for one 8 times as large as the latents."
        )
    if config.addition_embed_type not in _ADDITIONS:
        raise InputError(
            f"addition_embed_type of a ControlNet is one of {_ADDITIONS}, not {config.addition_embed_type!r}."
        )
    widths: Sequence[int] = config.block_out_channels
    model.conv_in = _conv(config.in_channels, widths[0])
    temb_channels = add_conditioning(model, config)
    model.controlnet_cond_embedding = reader or ControlNetConditioningEmbedding(
        widths[0], config.conditioning_channels, config.conditioning_embedding_out_channels
    )
    model.down_blocks = down_stages(config, temb_channels)
    model.mid_block = mid_stage_of(config, temb_channels)

    def zero_conv(width: int) -> nn.Conv2d:
        return zeroed(nn.Conv2d(width, width, kernel_size=1))

    model.controlnet_down_blocks = nn.ModuleList([zero_conv(widths[0])])
    for stage, width in zip(model.down_blocks, widths, strict=True):
        model.controlnet_down_blocks.extend(zero_conv(width) for _ in range(_kept(stage)))
    model.controlnet_mid_block = zero_conv(widths[-1])


def _kept(stage: DownStage) -> int:
    """How many features a stage keeps for the way up."""
    return len(stage.resnets) + (stage.downsamplers is not None and stage.keep_downsampled)


def attention_arguments(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``cross_attention_kwargs`` without the scale of LoRA layers, which is not the attention's."""
    return {key: value for key, value in (given or {}).items() if key != "scale"} or None


def embed_picture(model: Any, picture: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The features of a control picture (batch, channels, height, width), to be added to those of the sample ``h``."""
    channels, factor = (
        model.config.conditioning_channels,
        2 ** (len(model.controlnet_cond_embedding.blocks) // 2),
    )
    if picture.ndim != 4 or picture.shape[1] != channels:
        raise InputError(
            f"A control picture is a tensor (batch, {channels}, height, width), not {tuple(picture.shape)}."
        )
    features = model.controlnet_cond_embedding(picture)
    if features.shape[2:] != h.shape[2:]:
        raise InputError(
            f"The control picture has {tuple(picture.shape[2:])} pixels for a sample of {tuple(h.shape[2:])}: this "
            f"{type(model).__name__} takes pictures {factor} times as large as the sample."
        )
    return features


def control_residuals(model: Any, h: torch.Tensor, given: Conditioning) -> Residuals:
    """The way down and the middle from the first features ``h``, each output through its zero convolution."""
    h, kept, _ = down_path(model.down_blocks, h, given)
    if model.mid_block is not None:
        h = model.mid_block(h, given)
    down = [conv(feature) for conv, feature in zip(model.controlnet_down_blocks, kept, strict=True)]
    return down, model.controlnet_mid_block(h)


def weighted(residuals: Residuals, scale: Scale, guess_mode: bool, pool: bool) -> Residuals:
    """The residuals times ``scale``, a number or a tensor with one for each sample.

    In guess mode the weight also rises from 0.1 at the first feature to 1 in the middle, evenly in its logarithm; with
    ``pool`` each residual is the mean over its pixels and has a constant weight.
    """
    down, mid = residuals
    factor = _factor(scale, mid)
    if guess_mode and not pool:
        ramp = torch.logspace(-1, 0, len(down) + 1, device=mid.device)
        factors = [factor * weight for weight in ramp]
    else:
        factors = [factor] * (len(down) + 1)
    out = [scaled(residual, factor) for residual, factor in zip([*down, mid], factors, strict=True)]
    if pool:
        out = [residual.mean(dim=(2, 3), keepdim=True) for residual in out]
    return out[:-1], out[-1]


def _factor(scale: Scale, like: torch.Tensor) -> Scale:
    if not isinstance(scale, Real | torch.Tensor):
        raise InputError(
            f"conditioning_scale of one ControlNet is a number or a tensor, not {scale!r}; a list is for several "
            f"ControlNets."
        )
    if not isinstance(scale, torch.Tensor) or scale.ndim == 0:
        return scale
    if scale.shape in ((like.shape[0],), (1,)):
        return scale.reshape(-1, 1, 1, 1)
    if scale.ndim != 4:
        raise InputError(
            f"conditioning_scale has the shape {tuple(scale.shape)}: give one value, one for each of the "
            f"{like.shape[0]} samples, or a tensor of four dimensions."
        )
    return scale


def add_residuals_of(sums: Residuals | None, residuals: Residuals) -> Residuals:
    """Residuals of one more ControlNet added to those of the ones before."""
    if sums is None:
        return residuals
    if len(sums[0]) != len(residuals[0]):
        raise InputError(
            f"The ControlNets give {len(sums[0])} and {len(residuals[0])} residuals: they belong to different "
            f"architectures and cannot be used together."
        )
    down = [before + after for before, after in zip(sums[0], residuals[0], strict=True)]
    return down, sums[1] + residuals[1]


def check_counts(count: int, what: str = "ControlNets", **lists: Any) -> None:
    """Refuse lists that do not have an entry for each of ``count`` things."""
    for name, values in lists.items():
        if not isinstance(values, list | tuple | torch.Tensor) or (
            torch.is_tensor(values) and not values.ndim
        ):
            raise InputError(
                f"{name} is a list with an entry for each of the {count} {what}, not {type(values).__name__}."
            )
        if len(values) != count:
            raise InputError(f"{name} has {len(values)} entries for {count} {what}: give one for each.")


def is_zero(scale: Any) -> bool:
    """Whether a ControlNet of this scale adds nothing, as far as can be told without reading from a device."""
    return isinstance(scale, Real) and scale == 0


def entries_of_unet(cls: type, unet: UNet2DConditionModel) -> dict[str, Any]:
    """The arguments of a ControlNet ``cls`` for the encoder of ``unet``; ``InputError`` if it cannot have the same."""
    known, ordinary = init_parameters(cls), init_parameters(UNet2DConditionModel)
    config = unet.config_of_files  # without what an IP-Adapter shows in it
    entries = {name: config[name] for name in known if name in config}
    for name, parameter in ordinary.items():
        value = config.get(name, parameter.default)
        if name not in known and name not in _NOT_IN_A_CONTROLNET and value != parameter.default:
            raise InputError(
                f"A {cls.__name__} cannot be made of this U-Net, which has {name}={value!r}: its encoder would not "
                f"compute the same."
            )
    return entries


def copy_encoder(model: Any, unet: UNet2DConditionModel, without: str | None = None) -> None:
    """Put the weights of ``unet``'s encoder into ``model``; what ``unet`` does not have stays as it is.

    Weights ``without`` their like in a U-Net have this in their names.
    """
    own, theirs = model.state_dict(), unet.state_dict()
    encoder = (
        "conv_in.",
        "time_embedding.",
        "class_embedding.",
        "add_embedding.",
        "down_blocks.",
        "mid_block.",
    )
    shared = {key: value for key, value in theirs.items() if key in own}
    needed = [key for key in own if without is None or without not in key]
    if lacking := [
        key for key in needed if key.startswith((*encoder, "encoder_hid_proj.")) and key not in shared
    ]:
        raise InputError(f"The U-Net lacks the weight {lacking[0]!r}, which the ControlNet's encoder has.")
    model.load_state_dict(shared, strict=False)
