"""DDPM over continuous time in [0, 1] with a cosine schedule (Würstchen: Pernias et al., arXiv:2306.00637)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators
from calotype.schedulers.affine import affine
from calotype.schedulers.levels import level_of_alpha_bar, posterior
from calotype.schedulers.options import Device, step_count
from calotype.schedulers.run import Step
from calotype.schedulers.scheduler import SchedulerMixin, Unscaled
from calotype.schedulers.stepping import Values, once, stepping


class DDPMWuerstchenScheduler(Unscaled):
    """x' = (x − β/σ·ε̂)/√(1 − β) + ς·z with β = 1 − ᾱ/ᾱ'. ``timesteps`` fall from 1 to 0, both included."""

    init_noise_sigma: float = 1.0
    _begin_initial = SchedulerMixin._begin_nothing

    def __init__(self, scaler: float = 1.0, s: float = 0.008) -> None:
        if scaler <= 0:
            raise InputError(f"scaler={scaler} must be above 0.")

    def _alpha_bar(self, t: Any) -> Any:
        """ᾱ at a tensor of times: the cosine of Nichol & Dhariwal (arXiv:2102.09672), time warped by ``scaler``."""
        scaler, s = self.config.scaler, self.config.s
        t = 1 - (1 - t) ** scaler if scaler > 1 else t**scaler
        first = math.cos(s / (1 + s) * math.pi / 2) ** 2
        return (torch.cos((t + s) / (1 + s) * (math.pi / 2)).square() / first).clamp(0.0001, 0.9999)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        device: Device = None,
    ) -> None:
        """Begin a run of so many steps, or over the given times, of which the last is where it ends."""
        if timesteps is None:
            times = torch.linspace(1.0, 0.0, step_count(num_inference_steps) + 1)
        else:
            times = torch.as_tensor(timesteps, dtype=torch.float32).cpu()
        self._begin(times, device, step_count(len(times) - 1))

    def _locate(self, timestep: Any) -> int:
        """The step nearest to a time, which is a number or a batch of equal ones."""
        plan = self._running().plan
        if isinstance(timestep, Tensor) and timestep.dim() > 0:
            timestep = timestep.flatten()[0]
        t = plan.value(timestep)
        index = min(range(len(plan.t)), key=lambda i: abs(plan.t[i] - t))
        if index + 1 == len(plan.t):
            raise InputError(f"At time {t:g} the run is over: step from `timesteps[:-1]`.")
        return index

    def previous_timestep(self, timestep: Tensor) -> Tensor:
        """The time after this one in the run, shaped as ``timestep``."""
        following = self.timesteps[self._locate(timestep) + 1]
        return following.expand_as(timestep) if isinstance(timestep, Tensor) else following

    @stepping(begun=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on; draws noise at every step, the last included."""
        along, across, fresh = self._coefficients(at.i)
        terms = (along, at.sample), (across, at.output), (fresh, at.noise(generator))
        return (affine(*terms, dtype=at.output.dtype),)

    @once
    def _coefficients(self, i: int) -> tuple[float, float, float]:
        """The weights of the sample, the output and the noise in x'."""
        t = self._run.plan.t[i : i + 2]
        bar, following = self._alpha_bar(torch.tensor(t)).tolist()
        s, beta = level_of_alpha_bar(bar), 1 - bar / following
        mean, variance = 1 / math.sqrt(1 - beta), posterior(s, level_of_alpha_bar(following), beta)[2]
        return mean, -mean * beta / s.sigma, math.sqrt(variance) if t[1] else 0.0

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """√ᾱ·x0 + √(1 − ᾱ)·ε at times in [0, 1], one an item."""
        shape = (-1,) + (1,) * (original_samples.dim() - 1)
        bar = self._alpha_bar(timesteps.to(original_samples.device, torch.float32)).reshape(shape)
        noisy = bar.sqrt() * original_samples + (1 - bar).sqrt() * noise
        return noisy.to(original_samples.dtype)
