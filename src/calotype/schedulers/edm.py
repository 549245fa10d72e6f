"""Schedulers in the coordinates of Karras et al. (arXiv:2206.00364): σ itself is the level, the time is ¼·ln σ.

The network F is preconditioned: x̂0 = c_skip·x + c_out·F with c_skip = σ_d²/(σ² + σ_d²) and c_out = ±σσ_d/√(σ² + σ_d²),
and takes c_in·x with c_in = 1/√(σ² + σ_d²).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch

from calotype.schedulers.checks import one_of
from calotype.schedulers.coordinates import EDM
from calotype.schedulers.prediction import Linear
from calotype.schedulers.sigmas import SigmaScheduler


class EDMScheduler(SigmaScheduler):
    """Base of the schedulers with ``sigma_min``, ``sigma_max`` and ``sigma_data`` in their configuration."""

    def _configure(self) -> None:
        """Check the common options."""
        config = self.config
        one_of("sigma_schedule", config.sigma_schedule, ("karras", "exponential"))
        one_of("prediction_type", config.prediction_type, ("epsilon", "v_prediction"))
        one_of("final_sigmas_type", config.final_sigmas_type, ("zero", "sigma_min"))
        self._coordinates = EDM(config.sigma_data)

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise is multiplied with to become the first sample."""
        return math.sqrt(self.config.sigma_max**2 + 1)

    def precondition_inputs(self, sample: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """c_in·x."""
        return sample * (1 / (sigma**2 + self.config.sigma_data**2) ** 0.5)

    def precondition_noise(self, sigma: float | torch.Tensor) -> torch.Tensor:
        """The network's time."""
        return self._time(torch.as_tensor(sigma, dtype=torch.float32))

    @abstractmethod
    def _time(self, sigma: torch.Tensor) -> torch.Tensor:
        """The network's time at a level."""

    def precondition_outputs(
        self, sample: torch.Tensor, model_output: torch.Tensor, sigma: float | torch.Tensor
    ) -> torch.Tensor:
        """x̂0 = c_skip·x + c_out·F."""
        return self._clean(float(sigma)).of(sample, model_output)

    def _clean(self, sigma: float) -> Linear:
        data = self.config.sigma_data
        total = sigma**2 + data**2
        sign = -1.0 if self.config.prediction_type == "v_prediction" else 1.0
        return Linear(data**2 / total, sign * sigma * data / math.sqrt(total))

    def _levels(self, ramp: torch.Tensor) -> torch.Tensor:
        """σ along a ramp from 0 (``sigma_max``) to 1 (``sigma_min``), in the ramp's precision."""
        config = self.config
        if config.sigma_schedule == "karras":
            top, bottom = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
            return (top + ramp * (bottom - top)) ** config.rho
        ends = math.log(config.sigma_min), math.log(config.sigma_max)
        return torch.linspace(*ends, len(ramp)).exp().flip(0).to(ramp.dtype)

    def _begin_edm(self, levels: torch.Tensor, final: float, device: Any, count: int | None) -> None:
        """Begin a run over ``levels`` and a final one."""
        levels = levels.to(torch.float32)
        sigmas = torch.cat([levels, torch.tensor([final], dtype=torch.float32)])
        self._begin_levels(self._time(levels), sigmas, device, count)

    def _final(self, lowest: float) -> float:
        return lowest if self.config.final_sigmas_type == "sigma_min" else 0.0


def quarter_log(sigma: torch.Tensor) -> torch.Tensor:
    """The time of EDM's networks, ¼·ln σ."""
    return 0.25 * torch.log(sigma)


def ramp(steps: int, dtype: torch.dtype) -> torch.Tensor:
    """``steps`` numbers from 0 to 1."""
    return torch.linspace(0, 1, steps, dtype=dtype)
