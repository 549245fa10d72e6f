"""Methods in κ on the slopes of whole steps: Heun's, the mean of those at both ends; and linear multistep (LMS), the
last ones interpolated by a polynomial and integrated exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from calotype.schedulers.affine import Value, affine, evaluate
from calotype.schedulers.checks import step_count, steps_or_timesteps
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.exponential import interpolation_weights
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
        steps = steps_or_timesteps(self.config, num_inference_steps, timesteps)
        t, kappa = self._ladder(steps, timesteps, num_train_timesteps)
        twice = np.repeat(np.arange(steps), 2)[1:]
        self._begin_grid(Grid(t[twice], np.append(kappa[twice], kappa[-1])), device, steps, torch.float32)

    @stepping(PredictionSchedulerOutput)
    def step(self, run: Run, i: int, output: Tensor, sample: Tensor) -> tuple[Value, Value]:
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


class LMSDiscreteScheduler(ExplodingScheduler):
    """x' = x + Σ d_j·∫ℓ_j(κ) dκ with the Lagrange basis ℓ_j on the last levels: Adams-Bashforth on uneven steps."""

    __init__ = constructor(
        f"{TABLE} {CONVERTED} prediction_type {SPACED}", setup=ExplodingScheduler._make_table
    )

    def _begin_initial(self) -> None:
        self.set_timesteps(self.config.num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        self._begin_grid(Grid(*self._ladder(steps)), device, steps, torch.float32)

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """∫ℓ_j dκ over step ``t`` for the ``current_order``-th newest of ``order`` slopes."""
        return self._weights_of(t, order)[current_order]

    def _weights_of(self, i: int, order: int) -> list[float]:
        plan = self._run.plan
        if (i, order) not in plan.memo:
            step = plan.kappa[i + 1] - plan.kappa[i]
            nodes = [(plan.kappa[i - j] - plan.kappa[i]) / step for j in range(order)]
            plan.memo[i, order] = interpolation_weights(nodes, [step / (k + 1) for k in range(order)])
        return plan.memo[i, order]

    @stepping(PredictionSchedulerOutput)
    def step(self, run: Run, i: int, output: Tensor, sample: Tensor, order: int = 4) -> tuple[Value, Value]:
        """The sample one step on, with at most ``order`` slopes."""
        self._warn_unscaled()
        kappa, kind = run.plan.kappa[i], self.config.prediction_type
        x0, slope = (line(kind, kappa).of(sample, output) for line in (self._clean, self._slope))
        slopes = (slope, *run.history[: order - 1])
        weights = self._weights_of(i, len(slopes))
        prev_sample = affine((1.0, sample), *zip(weights, slopes, strict=True))
        prev_sample, x0, *run.history = evaluate(prev_sample, x0, *slopes)
        return prev_sample, x0
