"""Multistep predictors with a corrector that reuses the prediction at the level they led to: UniPC and SA-Solver.

Zhao et al., arXiv:2302.04867: predictor and corrector are one exponential integral each, the corrector from the level
before, with the new prediction among its nodes; bh1 and bh2 differ only in the weight of the first slope. Xue et al.,
arXiv:2309.05019: the same with as much noise as τ(t) says. τ = 0 solves the probability-flow ODE, τ = 1 the reverse
SDE; every τ has the same marginals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import Value, affine, evaluate
from calotype.schedulers.checks import conversion, step_count
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.grid import shifted
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


class UniPCMultistepScheduler(PreservingScheduler):
    """Each step corrects the sample with the prediction just made, then predicts the next with the last ones."""

    _zero_snr_floor = True

    def _prepare_solver(self) -> None:
        config = self.config
        if config.shift_terminal is not None and not config.use_flow_sigmas:
            raise InputError("shift_terminal stretches the levels of a flow: it needs use_flow_sigmas=True.")
        self.predict_x0, self.solver_p = config.predict_x0, config.solver_p
        self.disable_corrector = list(config.disable_corrector)
        self._prepare()

    __init__ = constructor(
        f"{TABLE} solver_order prediction_type {THRESHOLDING} predict_x0 solver_type lower_order_final "
        f"disable_corrector solver_p {CONVERTED} use_flow_sigmas flow_shift {SPACED} final_sigmas_type "
        "rescale_betas_zero_snr use_dynamic_shifting time_shift_type sigma_min sigma_max shift_terminal",
        setup=_prepare_solver,
        solver_order=choice(2, 1, 3, 4, 5, 6, 7, 8, 9),
        prediction_type=PREDICTIONS,
        solver_type=choice("bh2", "bh1", others=dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")),
    )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a run of so many steps, or over the flow levels ``sigmas`` (without the final one)."""
        config = self.config
        if sigmas is not None and not config.use_flow_sigmas:
            raise InputError("sigmas are the levels of a flow: they need use_flow_sigmas=True.")
        if config.use_dynamic_shifting and mu is None:
            raise InputError("use_dynamic_shifting=True needs the shift: give set_timesteps(mu=...).")
        steps = step_count(num_inference_steps if sigmas is None else len(sigmas))
        t, levels = self._flow(steps, sigmas, mu) if config.use_flow_sigmas else self._ladder(steps)
        final = self._repeated_or_lowest(levels) if config.final_sigmas_type == "sigma_min" else 0.0
        self._begin_to_final(t, levels, device, steps, final)
        if self.solver_p is not None:
            self.solver_p.set_timesteps(steps, device=device)

    def _flow(self, steps: int, sigmas: Any, mu: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Training steps and levels of a flow, shifted and never quite 1."""
        config, total = self.config, self.config.num_train_timesteps
        if sigmas is None and conversion(config):
            return self._ladder(steps)
        levels = (
            np.linspace(1, 1 / total, steps + 1)[:-1] if sigmas is None else np.asarray(sigmas, np.float64)
        )
        if mu is None:
            levels = shifted(levels, config.flow_shift)
        else:
            levels = shifted(levels, float(np.exp(mu)) if config.time_shift_type == "exponential" else mu)
        if config.shift_terminal:
            levels = 1 - (1 - levels) / ((1 - levels[-1]) / (1 - config.shift_terminal))
        if abs(levels[0] - 1) < 1e-6:
            levels[0] -= 1e-6
        return levels * total, levels

    @stepping(begun=True)
    def step(self, run: Run, i: int, output: Tensor, sample: Tensor) -> tuple[Tensor]:
        """The sample at the next level, after correcting the one at this level."""
        config, memo = self.config, run.plan.memo
        predicted = self._predict(i, sample, output, data=self.predict_x0)
        corrected: Value = sample
        if run.stage is not None and i > 0 and i - 1 not in self.disable_corrector:
            corrected = self._corrected(run, i, predicted)
        known = (predicted, *run.history[: config.solver_order - 1])
        order = min(config.solver_order, len(known))
        if config.lower_order_final:
            order = min(order, len(run.plan.t) - i)
        if self.solver_p is not None:
            corrected, *run.history = evaluate(corrected, *known)
            run.stage = corrected, order
            return (self.solver_p.step(output, self.timesteps[i], corrected).prev_sample,)
        if ("predictor", i, order) not in memo:
            others = [i - k for k in range(1, order)]
            memo["predictor", i, order] = self._update(run.plan, i, i + 1, others, first=order == 2)
        update = memo["predictor", i, order]
        prev_sample = affine((update.sample, corrected), *zip(update.predictions, known, strict=False))
        prev_sample, corrected, *run.history = evaluate(prev_sample, corrected, *known)
        run.stage = corrected, order
        return (prev_sample,)

    def _corrected(self, run: Run, i: int, predicted: Value) -> Value:
        """The sample at level ``i`` again, from the one before and with the prediction made here."""
        start, order = run.stage
        memo = run.plan.memo
        if ("corrector", i, order) not in memo:
            others = [i, *(i - k for k in range(2, order + 1))]
            memo["corrector", i, order] = self._update(run.plan, i - 1, i, others, first=order == 1)
        update = memo["corrector", i, order]
        newest, *older = run.history
        terms = zip(update.predictions, (newest, predicted, *older), strict=False)
        return affine((update.sample, start), *terms)

    def _update(self, plan: Plan, s: int, t: int, others: Sequence[int], *, first: bool) -> Update:
        """The weights from level ``s`` to ``t``; a lone slope has the weight of bh1 or bh2."""
        rule = {"bh1": "linear", "bh2": "midpoint"}[self.config.solver_type] if first else "exact"
        levels = plan.levels
        return exponential_update(
            levels[s], levels[t], [levels[k] for k in others], data=self.predict_x0, rule=rule
        )


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
        self._begin_to_final(t, levels, device, steps, self._repeated_or_lowest(levels))

    @stepping(begun=True)
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Tensor]:
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
