"""Ancestral sampling with Euler steps in κ: step further down than asked, then add noise back up (η = 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import step_count
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.grid import Grid
from calotype.schedulers.outputs import PredictionSchedulerOutput as EulerAncestralDiscreteSchedulerOutput
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from calotype.schedulers.transfer import fresh_noise, transfer


class EulerAncestralDiscreteScheduler(ExplodingScheduler):
    """x' = x̂0 + (κ_down/κ)·(x − x̂0) + κ_up·z with κ_down² + κ_up² = κ'²."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._check()
        self._make_table(zero_snr_floor=True)

    def _begin_initial(self) -> None:
        self._begin_training_grid(torch.float64)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        self._begin_grid(Grid(*self._ladder(steps)), device, steps, torch.float32)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> EulerAncestralDiscreteSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on; draws noise at every step, the last included."""
        self._refuse_index(timestep)
        run, i = self._locate(timestep)
        self._warn_unscaled(run)
        if i not in run.plan.memo:
            s, t = run.plan.levels[i : i + 2]
            up = fresh_noise(s, t, 1.0)
            down = transfer(t, up)[1] / s.sigma
            to_clean = self._clean(self.config.prediction_type, s.sigma)
            run.plan.memo[i] = to_clean, down + (1 - down) * to_clean.x, (1 - down) * to_clean.m, up
        to_clean, along, across, up = run.plan.memo[i]
        sample = sample.to(torch.float32)
        x0 = to_clean.of(sample, model_output)
        z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
        prev_sample = affine((along, sample), (across, model_output), (up, z)).to(model_output.dtype)
        run.index = i + 1
        return EulerAncestralDiscreteSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
