"""What a denoiser is trained to predict, and how the levels of noise are weighed, as pure functions.

Notation of Salimans & Ho, "Progressive distillation" (2022): a clean sample x, noise eps ~ N(0, I), the diffused
sample z_t = alpha_t x + sigma_t eps with alpha_t² = alpha_bar_t and sigma_t² = 1 - alpha_bar_t.
"""

from __future__ import annotations

from typing import Literal

import torch

from calotype.core.errors import InputError

Prediction = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")


def _like(level: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A value per sample [B], shaped to multiply samples [B, ...]."""
    return level.reshape(-1, *[1] * (x.ndim - 1))


def _check(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise InputError(
            f"The prediction {prediction!r} is not known; it can be one of {', '.join(PREDICTIONS)}."
        )


def diffuse(x: torch.Tensor, eps: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """z_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) eps; x and eps [B, ...], alpha_bar [B] in [0, 1]."""
    level = _like(alpha_bar, x)
    return level.sqrt() * x + (1 - level).sqrt() * eps


def prediction_target(
    x: torch.Tensor, eps: torch.Tensor, alpha_bar: torch.Tensor, prediction: Prediction
) -> torch.Tensor:
    """What the network should output at z_t: the noise, the sample, or the velocity v = alpha_t eps - sigma_t x."""
    _check(prediction)
    if prediction == "epsilon":
        return eps
    if prediction == "sample":
        return x
    level = _like(alpha_bar, x)
    return level.sqrt() * eps - (1 - level).sqrt() * x


def signal_to_noise(alpha_bar: torch.Tensor) -> torch.Tensor:
    """SNR = alpha_bar / (1 - alpha_bar)."""
    return alpha_bar / (1 - alpha_bar)


def min_snr_weight(alpha_bar: torch.Tensor, gamma: float, prediction: Prediction) -> torch.Tensor:
    """Weight [B] of each sample's squared error: min(SNR, gamma) as the weight of an error in x.

    The same error counts 1/SNR as much in eps and 1/(SNR + 1) in v (Hang et al., "Min-SNR weighting", 2023). A
    level without any signal has weight zero in x and v and one in eps; with zero-terminal-SNR tables use no
    weighting, or the last level is never learned.
    """
    _check(prediction)
    snr = signal_to_noise(alpha_bar)
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1)
    clipped = snr.clamp(max=gamma)
    return clipped if prediction == "sample" else clipped / (snr + 1)


def stratified_timesteps(uniform: torch.Tensor, batch: int, count: int) -> torch.Tensor:
    """``batch`` timesteps in [0, count), one in each of ``batch`` equal strata, from one uniform number [1].

    Each is uniformly distributed; together they cover the range evenly, so the loss varies less from step to
    step (Kingma et al., "Variational diffusion models", 2021, appendix I.1).
    """
    strata = torch.arange(batch, device=uniform.device, dtype=torch.float32) / batch
    return (((uniform + strata) % 1.0) * count).long().clamp(max=count - 1)


def denoising_loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    emphasis: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error in float32; ``weight`` [B] scales each sample's, ``emphasis`` [B, 1, ...] each place's."""
    squares = (predicted.float() - target.float()).square()
    error = (squares if emphasis is None else squares * emphasis).flatten(1).mean(1)
    return (error if weight is None else error * weight).mean()
