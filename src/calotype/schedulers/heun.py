"""Heun's method in κ: an Euler step, then the same step with the mean of the slopes at both its ends."""

from __future__ import annotations

import numpy as np
import torch

from calotype.schedulers.affine import Value, affine, evaluate
from calotype.schedulers.checks import exactly_one, refuse_timesteps, step_count
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.grid import Grid
from calotype.schedulers.options import CONVERTED, SPACED, TABLE, Device, Numbers, constructor
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.run import Run
from calotype.schedulers.stepping import stepping


class HeunDiscreteScheduler(ExplodingScheduler):
    """Karras et al., arXiv:2206.00364, algorithm 1: two evaluations a step, one for the last (to κ = 0)."""

    order = 2

    __init__ = constructor(
        f"{TABLE} prediction_type {CONVERTED} clip_sample clip_sample_range {SPACED}",
        setup=ExplodingScheduler._make_table,
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
    )

    def _begin_initial(self) -> None:
        self.set_timesteps(self.config.num_train_timesteps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        num_train_timesteps: int | None = None,
        timesteps: Numbers = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps; ``timesteps`` then has two entries a step."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if timesteps is not None:
            refuse_timesteps(self.config)
        steps = step_count(num_inference_steps if timesteps is None else len(timesteps))
        t, kappa = self._ladder(steps, timesteps, num_train_timesteps)
        twice = np.repeat(np.arange(steps), 2)[1:]
        self._begin_grid(Grid(t[twice], np.append(kappa[twice], kappa[-1])), device, steps, torch.float32)

    @stepping(PredictionSchedulerOutput)
    def step(self, run: Run, i: int, output: torch.Tensor, sample: torch.Tensor) -> tuple[Value, Value]:
        """The sample at the end of the step: provisional after its first evaluation, corrected after the second."""
        kappa, kind = run.plan.kappa, self.config.prediction_type
        x0 = self._clean(kind, kappa[i]).of(sample, output, self._limits)
        if self._limits.active:
            along, across, other = 1 / kappa[i], -1 / kappa[i], x0
        else:
            along, across, other = *self._slope(kind, kappa[i]).weights, output
        if run.stage is None:
            step = kappa[i + 1] - kappa[i]
            ends = (affine((1 + part * along, sample), (part * across, other)) for part in (step, step / 2))
            prev_sample, halfway, x0 = evaluate(*ends, x0)
            run.stage = halfway, step
            return prev_sample, x0
        (halfway, step), run.stage = run.stage, None
        return affine((1.0, halfway), (step / 2 * along, sample), (step / 2 * across, other)), x0
