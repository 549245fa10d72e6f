"""The objective of a model that makes pictures from noise alone (https://arxiv.org/abs/2006.11239)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from calotype.training.objectives import (
    Prediction,
    denoising_loss,
    diffuse,
    min_snr_weight,
    prediction_target,
)


class UnconditionalObjective(nn.Module):
    """Denoising loss of a UNet that is told the time and nothing else.

    ``alphas_cumprod`` [T] is the noise table of the scheduler that the model is made for. ``min_snr_gamma`` weighs the
    noise levels; ``None`` leaves them alike, and infinity weighs a prediction of the sample by the SNR itself.
    """

    unet: Any
    alphas_cumprod: torch.Tensor

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: torch.Tensor,
        prediction: Prediction = "epsilon",
        min_snr_gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.prediction = prediction
        self.min_snr_gamma = min_snr_gamma
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``images`` in [-1, 1] and ``noise`` [B, C, H, W], ``timesteps`` [B]."""
        images, noise, timesteps = batch["images"], batch["noise"], batch["timesteps"]
        level = self.alphas_cumprod[timesteps]
        predicted = self.unet(diffuse(images, noise, level), timesteps, return_dict=False)[0]
        target = prediction_target(images, noise, level, self.prediction)
        gamma = self.min_snr_gamma
        weight = None if gamma is None else min_snr_weight(level, gamma, self.prediction)
        return {"loss": denoising_loss(predicted, target, weight)}
