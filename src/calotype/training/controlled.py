"""A ControlNet that begins as the encoder of a UNet, and both as one denoiser."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Controlled(nn.Module):
    """A UNet with a ControlNet beside it, called as a UNet that is told ``controlnet_cond`` [B, 3, H, W]."""

    unet: Any
    controlnet: Any

    def __init__(self, unet: nn.Module, controlnet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *,
        controlnet_cond: torch.Tensor,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """The UNet's output, its features added to by the ControlNet."""
        told = {"added_cond_kwargs": added_cond_kwargs, "return_dict": False}
        down, middle = self.controlnet(sample, timestep, encoder_hidden_states, controlnet_cond, **told)
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **told,
        )


@torch.no_grad()
def controlnet_of(unet: Any, widths: tuple[int, ...], attention: bool = True) -> Any:
    """A ``ControlNetModel`` that begins as the encoder of ``unet``, also where that embeds time more narrowly.

    A ControlNet's configuration cannot say how wide its embedding of time is: that is four times its first width. What
    is wider than in ``unet`` is random, and nothing reads it yet. Without ``attention`` it is the encoder's
    convolutions alone, about half of the weights.
    """
    from calotype import ControlNetModel

    known = inspect.signature(ControlNetModel).parameters
    entries = {name: value for name, value in unet.config.items() if name in known}
    if not attention:
        entries["down_block_types"] = ("DownBlock2D",) * len(unet.config.down_block_types)
        entries["mid_block_type"] = "UNetMidBlock2D"
    controlnet = ControlNetModel(
        **entries,
        conditioning_embedding_out_channels=widths,
    )
    weights = unet.state_dict()
    for name, mine in controlnet.state_dict().items():
        if name in weights:
            given = weights[name]
            if mine.ndim > 1:
                mine[:, given.shape[1] :] = 0
            mine[tuple(slice(size) for size in given.shape)] = given
    return controlnet
