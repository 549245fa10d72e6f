"""Variance-exploding models whose caller walks: the reverse SDE with a corrector, and stochastic sampling with Heun's.

Song et al., arXiv:2011.13456, algorithms 2 and 4; Karras et al., arXiv:2206.00364, algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import combined
from calotype.schedulers.options import Device, step_count
from calotype.schedulers.scheduler import SchedulerMixin, Unscaled, of_run
from calotype.schedulers.stepping import SchedulerOutput, Step, Values, once, stepping


@dataclass
class SdeVeOutput(BaseOutput):
    """``prev_sample``, and the same without the noise of this step, ``prev_sample_mean``."""

    prev_sample: Tensor
    prev_sample_mean: Tensor


class ScoreSdeVeScheduler(Unscaled):
    """Each step is ``correct_steps`` of Langevin dynamics and one of the reverse SDE; networks give the score.

    ``timesteps`` fall from 1 to ``sampling_eps``; ``discrete_sigmas`` rise geometrically.
    """

    _begin_initial = SchedulerMixin._begin_trained
    sigmas = of_run("plan.sigmas", "σ at the timesteps, falling.")

    def __init__(
        self,
        num_train_timesteps: int = 2000,
        snr: float = 0.15,
        sigma_min: float = 0.01,
        sigma_max: float = 1348.0,
        sampling_eps: float = 1e-5,
        correct_steps: int = 1,
    ) -> None:
        self.init_noise_sigma = sigma_max

    def set_timesteps(
        self, num_inference_steps: int, sampling_eps: float | None = None, device: Device = None
    ) -> None:
        """Begin a run of so many steps, over the levels of the configuration."""
        self._begin_between(self._times(num_inference_steps, sampling_eps), device)

    def set_sigmas(
        self,
        num_inference_steps: int,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sampling_eps: float | None = None,
    ) -> None:
        """Begin a run of so many steps over other levels; timesteps of this number stay as they were set."""
        kept = self.timesteps
        times = kept.cpu()
        if sampling_eps is not None or len(kept) != num_inference_steps:
            times = self._times(num_inference_steps, sampling_eps)
        self._begin_between(times, kept.device, sigma_min, sigma_max)

    def _times(self, steps: int, eps: float | None) -> Tensor:
        return torch.linspace(1, self.config.sampling_eps if eps is None else eps, step_count(steps))

    def _begin_between(
        self, times: Tensor, device: Any, low: float | None = None, high: float | None = None
    ) -> None:
        low = self.config.sigma_min if low is None else low
        high = self.config.sigma_max if high is None else high
        if not 0 < low < high:
            raise InputError(f"sigma_min={low} must be above 0 and below sigma_max={high}.")
        sigmas = torch.tensor([low * (high / low) ** u for u in times.tolist()])
        rising = torch.linspace(math.log(low), math.log(high), len(times)).exp()
        self._begin(times, device, len(times), sigmas, kappa=tuple(rising.tolist()))

    @property
    def discrete_sigmas(self) -> Tensor:
        """σ that steps and noise are indexed with, rising."""
        return self._discrete(torch.device("cpu"))

    @once
    def _discrete(self, device: torch.device) -> Tensor:
        return torch.tensor(self._run.plan.kappa, device=device)

    def get_adjacent_sigma(self, timesteps: Tensor, t: Tensor) -> Tensor:
        """σ one below those of the indices ``timesteps``; 0 below the first."""
        below = self._discrete(timesteps.device)[timesteps - 1]
        return torch.where(timesteps == 0, torch.zeros_like(t), below)

    @stepping(SdeVeOutput, indexed=False)
    def step_pred(self, at: Step, generator: Generators = None) -> Values:
        """One step of the reverse SDE: x' = x + (σ² − σ'²)·score + √(σ² − σ'²)·z."""
        sample = at.sample
        t = torch.as_tensor(at.timestep, dtype=torch.float32).to(sample.device).expand(len(sample))
        index = (t * (len(at.plan.t) - 1)).long()
        gained = self._discrete(sample.device)[index] ** 2 - self.get_adjacent_sigma(index, t) ** 2
        spread = _column(gained.sqrt(), sample)
        mean = sample + spread**2 * at.output
        return mean + spread * randn_tensor(sample.shape, generator, sample.device, sample.dtype), mean

    def step_correct(
        self, model_output: Tensor, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step of Langevin dynamics, x + ε·score + √(2ε)·z with ε = 2·(snr·|z|/|score|)²."""
        z = randn_tensor(sample.shape, generator, sample.device)
        lengths = [v.reshape(len(v), -1).norm(dim=-1).mean() for v in (z, model_output)]
        size = _column(2 * (self.config.snr * lengths[0] / lengths[1]) ** 2, sample)  # keeps float32
        prev_sample = sample + size * model_output + (2 * size).sqrt() * z
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)

    def add_noise(self, original_samples: Tensor, noise: Tensor | None, timesteps: Tensor) -> Tensor:
        """x0 + σ·ε at the indices ``timesteps`` of ``discrete_sigmas``, one an item; ε is drawn if it is None."""
        sigma = self._discrete(original_samples.device)[timesteps.to(original_samples.device)]
        noise = torch.randn_like(original_samples) if noise is None else noise
        return original_samples + _column(sigma, original_samples) * noise


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Values, one an item, shaped to multiply ``like``."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


@dataclass
class KarrasVeOutput(BaseOutput):
    """``prev_sample``, the slope that it was made with, ``derivative``, and ``pred_original_sample``."""

    prev_sample: Tensor
    derivative: Tensor
    pred_original_sample: Tensor | None = None


class KarrasVeScheduler(Unscaled):
    """The caller walks: ``add_noise_to_input`` raises σ to σ̂, ``step`` goes down to σ', ``step_correct`` is Heun's.

    ``schedule[t]`` for the falling ``timesteps`` are σ_max²·(σ_min²/σ_max²)^(i/(N−1)), the paper's times, used as σ.
    """

    order = 2
    _begin_initial = SchedulerMixin._begin_nothing
    schedule = of_run("plan.sigmas", "The levels, rising, by timestep; None before ``set_timesteps``.")

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

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        high, low = self.config.sigma_max**2, self.config.sigma_min**2
        rising = [high * (low / high) ** (i / max(steps - 1, 1)) for i in reversed(range(steps))]
        schedule = torch.tensor(rising, dtype=torch.float32, device=device)
        self._begin(np.arange(steps)[::-1], device, steps, schedule)

    def add_noise_to_input(
        self, sample: Tensor, sigma: float, generator: Generators = None
    ) -> tuple[Tensor, float]:
        """The sample with noise added up to σ̂ = σ + γ·σ, and σ̂; γ is 0 outside [s_min, s_max]."""
        config, steps, churn = self.config, self._running().plan.count or 1, 0.0
        if config.s_min <= sigma <= config.s_max:
            churn = min(config.s_churn / steps, math.sqrt(2) - 1)
        z = randn_tensor(sample.shape, generator).to(sample.device)
        raised = sigma + churn * sigma
        return sample + (raised**2 - sigma**2) ** 0.5 * (config.s_noise * z), raised

    def step(
        self,
        model_output: Tensor,
        sigma_hat: float,
        sigma_prev: float,
        sample_hat: Tensor,
        return_dict: bool = True,
    ) -> KarrasVeOutput | tuple[Tensor, Tensor]:
        """Euler's step from σ̂ to σ'; x̂0 is x + σ̂·F, so that the slope is −F."""
        x0, slope = sample_hat + sigma_hat * model_output, -model_output
        prev_sample = sample_hat + (sigma_prev - sigma_hat) * slope
        return KarrasVeOutput(prev_sample, slope, x0) if return_dict else (prev_sample, slope)

    def step_correct(
        self,
        model_output: Tensor,
        sigma_hat: float,
        sigma_prev: float,
        sample_hat: Tensor,
        sample_prev: Tensor,
        derivative: Tensor,
        return_dict: bool = True,
    ) -> KarrasVeOutput | tuple[Tensor, Tensor]:
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
