"""Stochastic sampling of variance-exploding models (Karras et al., arXiv:2206.00364, algorithm 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import combined
from calotype.schedulers.checks import step_count
from calotype.schedulers.options import Device
from calotype.schedulers.run import Plan
from calotype.schedulers.scheduler import SchedulerMixin


@dataclass
class KarrasVeOutput(BaseOutput):
    """``prev_sample``, the slope that it was made with, ``derivative``, and ``pred_original_sample``."""

    prev_sample: torch.Tensor
    derivative: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class KarrasVeScheduler(SchedulerMixin):
    """The caller walks: ``add_noise_to_input`` raises σ to σ̂, ``step`` goes down to σ', ``step_correct`` is Heun's.

    ``schedule[t]`` for the falling ``timesteps`` are σ_max²·(σ_min²/σ_max²)^(i/(N−1)), the paper's times, used as σ.
    """

    order = 2

    def __init__(
        self,
        sigma_min: float = 0.02,
        sigma_max: float = 100,
        s_noise: float = 1.007,
        s_churn: float = 80,
        s_min: float = 0.05,
        s_max: float = 50,
    ) -> None:
        if not 0 < sigma_min < sigma_max:
            raise InputError(f"sigma_min={sigma_min} must be above 0 and below sigma_max={sigma_max}.")
        self.init_noise_sigma = sigma_max

    def _begin_initial(self) -> None:
        self._start(Plan(None))

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        high, low = self.config.sigma_max**2, self.config.sigma_min**2
        rising = [high * (low / high) ** (i / max(steps - 1, 1)) for i in reversed(range(steps))]
        timesteps = torch.from_numpy(np.arange(steps)[::-1].copy()).to(device)
        schedule = torch.tensor(rising, dtype=torch.float32, device=device)
        self._start(Plan(timesteps, schedule, steps, tuple(range(steps))[::-1]))

    @property
    def schedule(self) -> torch.Tensor | None:
        """The levels, rising, by timestep; None before ``set_timesteps``."""
        return self._run.plan.sigmas

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The network's input: the sample itself."""
        return sample

    def add_noise_to_input(
        self, sample: torch.Tensor, sigma: float, generator: Generators = None
    ) -> tuple[torch.Tensor, float]:
        """The sample with noise added up to σ̂ = σ + γ·σ, and σ̂; γ is 0 outside [s_min, s_max]."""
        config, steps = self.config, self._running().plan.count or 1
        churn = (
            min(config.s_churn / steps, math.sqrt(2) - 1) if config.s_min <= sigma <= config.s_max else 0.0
        )
        z = randn_tensor(sample.shape, generator).to(sample.device)
        raised = sigma + churn * sigma
        return sample + (raised**2 - sigma**2) ** 0.5 * (config.s_noise * z), raised

    def step(
        self,
        model_output: torch.Tensor,
        sigma_hat: float,
        sigma_prev: float,
        sample_hat: torch.Tensor,
        return_dict: bool = True,
    ) -> KarrasVeOutput | tuple[torch.Tensor, torch.Tensor]:
        """Euler's step from σ̂ to σ'; x̂0 is x + σ̂·F, so that the slope is −F."""
        x0, slope = sample_hat + sigma_hat * model_output, -model_output
        prev_sample = sample_hat + (sigma_prev - sigma_hat) * slope
        return KarrasVeOutput(prev_sample, slope, x0) if return_dict else (prev_sample, slope)

    def step_correct(
        self,
        model_output: torch.Tensor,
        sigma_hat: float,
        sigma_prev: float,
        sample_hat: torch.Tensor,
        sample_prev: torch.Tensor,
        derivative: torch.Tensor,
        return_dict: bool = True,
    ) -> KarrasVeOutput | tuple[torch.Tensor, torch.Tensor]:
        """The same step with the mean of its slope and that at its end, which ``model_output`` gives."""
        x0 = sample_prev + sigma_prev * model_output
        mean = combined((0.5, derivative), (-0.5, model_output))
        prev_sample = sample_hat + (sigma_prev - sigma_hat) * mean
        return KarrasVeOutput(prev_sample, derivative, x0) if return_dict else (prev_sample, derivative)

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> NoReturn:
        """Raises ``NotImplementedError``: this method defines no training levels; see ``add_noise_to_input``."""
        raise NotImplementedError(
            "KarrasVeScheduler has no training levels to noise to: use add_noise_to_input."
        )
