"""Heun's method in κ: an Euler step, then the same step with the mean of the slopes at both its ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, exactly_one, refuse_timesteps, step_count
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.grid import Grid
from calotype.schedulers.outputs import PredictionSchedulerOutput as HeunDiscreteSchedulerOutput
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY


class HeunDiscreteScheduler(ExplodingScheduler):
    """Karras et al., arXiv:2206.00364, algorithm 1: two evaluations a step, one for the last (to κ = 0)."""

    _compatibles = SIGNAL_NOISE_FAMILY
    order = 2

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        self._check()
        conversion(self.config)
        self._make_table()

    def _begin_initial(self) -> None:
        self.set_timesteps(self.config.num_train_timesteps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps; ``timesteps`` then has two entries a step."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if timesteps is not None:
            refuse_timesteps(self.config)
        steps = step_count(num_inference_steps if timesteps is None else len(timesteps))
        t, kappa = self._ladder(steps, timesteps, num_train_timesteps)
        twice = np.repeat(np.arange(steps), 2)[1:]
        self._begin_grid(Grid(t[twice], np.append(kappa[twice], kappa[-1])), device, steps, torch.float32)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> HeunDiscreteSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample at the end of the step: provisional after its first evaluation, corrected after the second."""
        run, i = self._locate(timestep)
        kappa = run.plan.kappa
        to_clean = self._clean(self.config.prediction_type, kappa[i])
        x0 = self._limits.apply(to_clean.of(sample, model_output))
        if self._limits.active:
            slope = affine((1 / kappa[i], sample), (-1 / kappa[i], x0))
        else:
            slope = self._slope(self.config.prediction_type, kappa[i]).of(sample, model_output)
        if run.stage is None:
            step = kappa[i + 1] - kappa[i]
            run.stage = sample, slope, step
            prev_sample = affine((1.0, sample), (step, slope))
        else:
            start, first, step = run.stage
            run.stage = None
            prev_sample = affine((1.0, start), (step / 2, first), (step / 2, slope))
        run.index = i + 1
        return HeunDiscreteSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
