"""A UNet and the ControlNet that is trained for it, as one denoiser."""

from __future__ import annotations

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
