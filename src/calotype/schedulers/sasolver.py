"""SA-Solver: stochastic Adams predictor and corrector, with as much noise as τ(t) says (Xue et al., arXiv:2309.05019).

τ = 0 solves the probability-flow ODE, τ = 1 the reverse SDE; every τ has the same marginals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import Value, affine, evaluate
from calotype.schedulers.checks import step_count
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.grid import Grid
from calotype.schedulers.multistep import PREDICTIONS, VARIANCES
from calotype.schedulers.options import (
    CONVERTED,
    SPACED,
    TABLE,
    THRESHOLDING,
    Device,
    choice,
    constructor,
)  # fmt: skip
from calotype.schedulers.preserving import PreservingScheduler
from calotype.schedulers.run import Plan, Run
from calotype.schedulers.stepping import stepping


def middle_of_the_chain(t: float) -> float:
    """The paper's choice of τ for latent models: noise only between the training steps 200 and 800."""
    return 1.0 if 200 <= t <= 800 else 0.0


class SASolverScheduler(PreservingScheduler):
    """Each step corrects the sample with the prediction just made, then predicts the next and adds noise."""

    def _prepare_solver(self) -> None:
        config = self.config
        self.predict_x0 = config.algorithm_type == "data_prediction"
        self.tau_func = middle_of_the_chain if config.tau_func is None else config.tau_func
        self._prepare()

    __init__ = constructor(
        f"{TABLE} predictor_order corrector_order prediction_type tau_func {THRESHOLDING} algorithm_type "
        f"lower_order_final {CONVERTED} use_flow_sigmas flow_shift lambda_min_clipped variance_type {SPACED}",
        setup=_prepare_solver,
        prediction_type=PREDICTIONS,
        algorithm_type=choice("data_prediction", "noise_prediction"),
        variance_type=VARIANCES,
    )

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        t, levels = self._ladder(steps)
        levels = np.append(levels, self._repeated_or_lowest(levels))
        self._begin_grid(Grid(t, levels), device, steps, torch.int64)

    @stepping(begun=True)
    def step(
        self, run: Run, i: int, output: torch.Tensor, sample: torch.Tensor, generator: Generators = None
    ) -> tuple[torch.Tensor]:
        """The sample at the next level, after correcting the one at this level; draws noise at every step."""
        config, plan, output = self.config, run.plan, self._mean(output, sample)
        predicted = self._predict(i, sample, output, data=self.predict_x0)
        corrected = sample if run.stage is None else self._corrected(run, i, predicted)
        known = (predicted, *run.history[:2])
        order = min(config.predictor_order, len(known))
        if config.lower_order_final:
            order = min(order, len(plan.t) - i)
        z = randn_tensor(output.shape, generator, output.device, output.dtype)
        others = [i - k for k in range(1, order)]
        update = self._update(plan, i, i + 1, others, float(self.tau_func(plan.t[i])))
        terms = zip(update.predictions, known, strict=False)
        prev_sample = affine((update.sample, corrected), *terms, (update.noise, z))
        prev_sample, corrected, *run.history = evaluate(prev_sample, corrected, *known)
        run.stage = corrected, z
        return (prev_sample,)

    def _corrected(self, run: Run, i: int, predicted: Value) -> Value:
        """The sample at level ``i`` again, with the noise that led there and the prediction made here."""
        start, z = run.stage
        order = min(self.config.corrector_order, len(run.history) + 1)
        others = [i, *(i - k for k in range(2, order))] if order > 1 else []
        update = self._update(run.plan, i - 1, i, others, float(self.tau_func(run.plan.t[i - 1])))
        newest, *older = run.history
        known = (newest, predicted, *older) if order > 1 else (predicted,)
        terms = zip(update.predictions, known, strict=False)
        return affine((update.sample, start), *terms, (update.noise, z))

    def _update(self, plan: Plan, s: int, t: int, others: Sequence[int], tau: float) -> Update:
        """The weights from level ``s`` to ``t``; two nodes weigh the slope with half of the step."""
        key = s, t, tuple(others), tau
        if key not in plan.memo:
            rule = "linear" if len(others) == 1 and self.predict_x0 else "exact"
            levels = plan.levels
            nodes = [levels[k] for k in others]
            plan.memo[key] = exponential_update(
                levels[s], levels[t], nodes, data=self.predict_x0, tau=tau, rule=rule
            )
        return plan.memo[key]
