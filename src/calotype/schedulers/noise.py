"""Noise tables: how much of the signal is left at each training step, and which step a noise level belongs to.

A table is built in float32, as the checkpoints were trained with (a float64 table shifts every noise level by
1e-5 relative); everything derived from it is computed in float64 from those float32 values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from calotype.schedulers.levels import Level

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid")


def _cosine(t: float) -> float:
    """Nichol & Dhariwal 2021 (arXiv:2102.09672), equation 17."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    """Hang & Gu 2024 (arXiv:2407.03297): a Laplace density of log-SNR, location 0, scale 0.5."""
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


SIGNAL_CURVES: dict[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": _cosine,
    "exp": lambda t: math.exp(-12.0 * t),
    "laplace": _laplace,
}


def make_betas(
    schedule: str,
    start: float,
    end: float,
    count: int,
    trained: Sequence[float] | np.ndarray | Tensor | None = None,
) -> Tensor:
    """β of every training step, float32 of shape ``(count,)``; ``trained`` values replace the schedule."""
    if trained is not None:
        return torch.as_tensor(np.asarray(trained, dtype=np.float64)).to(torch.float32)
    if schedule == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32).square()
    if schedule == "sigmoid":  # GeoDiff, arXiv:2203.02923
        return torch.sigmoid(torch.linspace(-6, 6, count, dtype=torch.float32)) * (end - start) + start
    curve = SIGNAL_CURVES[schedule]
    left = [curve(i / count) for i in range(count + 1)]
    return torch.tensor([min(1 - left[i + 1] / left[i], 0.999) for i in range(count)], dtype=torch.float32)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """β shifted and stretched so that the last step has no signal at all (Lin et al., arXiv:2305.08891, alg. 1)."""
    signal = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    kept = ((signal - last) * (first / (first - last))).square()
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


def sigma_to_t(sigmas: np.ndarray, log_sigmas: np.ndarray) -> np.ndarray:
    """The fractional training step of each noise level, by linear interpolation in log σ; ends are clamped.

    With zero terminal SNR the table need not rise at its end; a level then belongs to the last step that is below it.
    """
    at = np.log(np.maximum(np.asarray(sigmas, dtype=np.float64), 1e-10))
    table = log_sigmas.astype(np.float64)
    below = at[:, None] >= table
    low = np.where(below.any(1), len(table) - 1 - below[:, ::-1].argmax(1), 0).clip(max=len(table) - 2)
    share = ((at - table[low]) / (table[low + 1] - table[low])).clip(0, 1)
    return (1 - share) * low + share * (low + 1)


class NoiseTable:
    """ᾱ_t of the training steps (float32, of few models float64) and what follows from it."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @cached_property
    def levels(self) -> list[Level]:
        """α_t and σ_t as Python floats with the values that checkpoints were trained with (float32, or float64)."""
        host = self._exact
        return [Level(*pair) for pair in zip(host.sqrt().tolist(), (1 - host).sqrt().tolist(), strict=True)]

    def beta(self, t: int, previous: int) -> float:
        """1 − ᾱ_t/ᾱ_previous in float32; before the first step ᾱ is 1."""
        bar = self._host
        return float(1 - bar[t] / (bar[previous] if previous >= 0 else np.float32(1)))

    @cached_property
    def _exact(self) -> Tensor:
        bar = self.alphas_cumprod.detach().cpu()
        return bar if bar.dtype == torch.float64 else bar.to(torch.float32)

    @cached_property
    def _host(self) -> np.ndarray:
        return self._exact.numpy()

    @cached_property
    def kappa(self) -> np.ndarray:
        """κ_t = σ_t/α_t = √((1−ᾱ)/ᾱ), float32, ascending."""
        host = self.alphas_cumprod.detach().to("cpu", torch.float32)
        return (((1 - host) / host) ** 0.5).numpy()

    @cached_property
    def log_kappa(self) -> np.ndarray:
        """ln κ_t, float32."""
        return np.log(self.kappa)

    def alpha_sigma(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t of a batch of integer steps, shaped to multiply ``like``, on its device, without a sync."""
        device = like.device
        if device not in self._on:
            bar = self._exact.to(device)
            self._on[device] = (bar.sqrt(), (1 - bar).sqrt())
        shape = (-1,) + (1,) * (like.dim() - 1)
        t = t.to(device)
        alpha, sigma = self._on[device]
        return alpha[t].reshape(shape).to(like.dtype), sigma[t].reshape(shape).to(like.dtype)
