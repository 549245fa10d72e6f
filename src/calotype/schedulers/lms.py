"""Linear multistep in κ: the slopes of the last steps, interpolated by a polynomial and integrated exactly."""

from __future__ import annotations

import torch

from calotype.schedulers.affine import Value, affine, evaluate
from calotype.schedulers.checks import step_count
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.exponential import interpolation_weights
from calotype.schedulers.grid import Grid
from calotype.schedulers.options import CONVERTED, SPACED, TABLE, Device, constructor
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.run import Run
from calotype.schedulers.stepping import stepping


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
    def step(
        self, run: Run, i: int, output: torch.Tensor, sample: torch.Tensor, order: int = 4
    ) -> tuple[Value, Value]:
        """The sample one step on, with at most ``order`` slopes."""
        self._warn_unscaled()
        kappa, kind = run.plan.kappa[i], self.config.prediction_type
        x0, slope = (line(kind, kappa).of(sample, output) for line in (self._clean, self._slope))
        slopes = (slope, *run.history[: order - 1])
        weights = self._weights_of(i, len(slopes))
        prev_sample = affine((1.0, sample), *zip(weights, slopes, strict=True))
        prev_sample, x0, *run.history = evaluate(prev_sample, x0, *slopes)
        return prev_sample, x0
