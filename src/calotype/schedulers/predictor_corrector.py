"""Multistep predictors with a corrector that reuses the prediction at the level they led to: UniPC and SA-Solver.

Zhao et al., arXiv:2302.04867: predictor and corrector are one exponential integral each, the corrector from the level
before, with the new prediction among its nodes; bh1 and bh2 differ only in the weight of the first slope. Xue et al.,
arXiv:2309.05019: the same with as much noise as τ(t) says. τ = 0 solves the probability-flow ODE, τ = 1 the reverse
SDE; every τ has the same marginals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators
from calotype.schedulers.affine import Value
from calotype.schedulers.dpm_solver import PREDICTIONS, VARIANCES
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.grid import shifted, stretched
from calotype.schedulers.ladders import PreservingScheduler
from calotype.schedulers.options import Device, choice, constructor, conversion, step_count
from calotype.schedulers.stepping import Step, Values, once, stepping


class CorrectingScheduler(PreservingScheduler):
    """Base of both: the integrals over predictions of x̂0 (``predict_x0``) or ε̂."""

    predict_x0: bool
    _slope_rule: str
    """How a slope that two predictions make alone is weighed."""

    def _order(self, at: Step, wanted: int, known: int) -> int:
        """How many predictions the predictor combines: no more than are known and, at the end, than steps are left."""
        left = len(at.plan.t) - at.i if self.config.lower_order_final else wanted
        return min(wanted, known, left)

    def _predicted(
        self,
        at: Step,
        start: Value,
        known: Sequence[Value],
        order: int,
        z: Tensor | None = None,
        tau: float = 0.0,
    ) -> Value:
        """The sample at the next level, by the ``order`` newest of the predictions that are ``known``."""
        others = tuple(at.i - k for k in range(1, order))
        return self._update(at.i, at.i + 1, others, tau).of(start, known, z)

    def _corrected(
        self, at: Step, start: Value, predicted: Value, older: int, z: Tensor | None = None, tau: float = 0.0
    ) -> Value:
        """The sample at this level again: from the one before (``start``), with the prediction made here and ``older``
        ones, or by it alone."""
        i, (newest, *rest) = at.i, at.run.history
        others = (i, *(i - k for k in range(2, older + 1))) if older else ()
        known = (newest, predicted, *rest) if older else (predicted,)
        return self._update(i - 1, i, others, tau).of(start, known, z)

    @once
    def _update(self, s: int, t: int, others: tuple[int, ...], tau: float) -> Update:
        """The weights from level ``s`` to ``t``, with predictions at ``s`` and the ``others``."""
        levels, rule = self._run.plan.levels, self._slope_rule if len(others) == 1 else "exact"
        nodes = [levels[k] for k in others]
        return exponential_update(levels[s], levels[t], nodes, data=self.predict_x0, tau=tau, rule=rule)


class UniPCMultistepScheduler(CorrectingScheduler):
    """Each step corrects the sample with the prediction just made, then predicts the next with the last ones."""

    _zero_snr_floor = True

    def _prepare_solver(self) -> None:
        config = self.config
        if config.shift_terminal is not None and not config.use_flow_sigmas:
            raise InputError("shift_terminal stretches the levels of a flow: it needs use_flow_sigmas=True.")
        self.predict_x0, self.solver_p = config.predict_x0, config.solver_p
        self.disable_corrector = list(config.disable_corrector)
        self._slope_rule = {"bh1": "linear", "bh2": "midpoint"}[config.solver_type]
        self._prepare()

    __init__ = constructor(
        "TABLE solver_order prediction_type THRESHOLDING predict_x0 solver_type lower_order_final "
        "disable_corrector solver_p CONVERTED use_flow_sigmas flow_shift SPACED final_sigmas_type "
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
        t, ladder = self._flow(steps, sigmas, mu) if config.use_flow_sigmas else self._ladder(steps)
        final = self._repeated_or_lowest(ladder) if config.final_sigmas_type == "sigma_min" else 0.0
        self._begin_ladder(t, ladder, device, final)
        if self.solver_p is not None:
            self.solver_p.set_timesteps(steps, device=device)

    def _flow(self, steps: int, sigmas: Any, mu: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Training steps and levels of a flow, shifted and never quite 1."""
        config, total = self.config, self.config.num_train_timesteps
        if sigmas is None:
            if conversion(config):
                return self._ladder(steps)
            sigmas = np.linspace(1, 1 / total, steps + 1)[:-1]
        shift = config.flow_shift if mu is None else mu
        if mu is not None and config.time_shift_type == "exponential":
            shift = float(np.exp(mu))
        ladder = shifted(np.asarray(sigmas, np.float64), shift)
        if config.shift_terminal:
            ladder = stretched(ladder, config.shift_terminal)
        if abs(ladder[0] - 1) < 1e-6:
            ladder[0] -= 1e-6
        return ladder * total, ladder

    @stepping(begun=True)
    def step(self, at: Step) -> Values:
        """The sample at the next level, after correcting the one at this level."""
        config, run = self.config, at.run
        predicted = self._predict(at, self.predict_x0)
        corrected: Value = at.sample
        if run.stage is not None and at.i > 0 and at.i - 1 not in self.disable_corrector:
            start, older = run.stage
            corrected = self._corrected(at, start, predicted, older)
        known = (predicted, *run.history[: config.solver_order - 1])
        order = self._order(at, config.solver_order, len(known))
        prev_sample = self._predicted(at, corrected, known, order)
        prev_sample, corrected = at.remember(known, prev_sample, corrected)
        run.stage = corrected, order
        if self.solver_p is not None:
            prev_sample = self.solver_p.step(at.output, self.timesteps[at.i], corrected).prev_sample
        return (prev_sample,)


def middle_of_the_chain(t: float) -> float:
    """The paper's choice of τ for latent models: noise only between the training steps 200 and 800."""
    return 1.0 if 200 <= t <= 800 else 0.0


class SASolverScheduler(CorrectingScheduler):
    """Each step corrects the sample with the prediction just made, then predicts the next and adds noise."""

    tau_func: Callable[[float], float]

    def _prepare_solver(self) -> None:
        config = self.config
        self.predict_x0 = config.algorithm_type == "data_prediction"
        self.tau_func = middle_of_the_chain if config.tau_func is None else config.tau_func
        self._slope_rule = "linear" if self.predict_x0 else "exact"
        self._prepare()

    __init__ = constructor(
        "TABLE predictor_order corrector_order prediction_type tau_func THRESHOLDING algorithm_type "
        "lower_order_final CONVERTED use_flow_sigmas flow_shift lambda_min_clipped variance_type SPACED",
        setup=_prepare_solver,
        prediction_type=PREDICTIONS,
        algorithm_type=choice("data_prediction", "noise_prediction"),
        variance_type=VARIANCES,
    )

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Begin a run of so many steps."""
        t, ladder = self._ladder(step_count(num_inference_steps))
        self._begin_ladder(t, ladder, device, self._repeated_or_lowest(ladder))

    @stepping(begun=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample at the next level, after correcting the one at this level with the noise that led there; draws
        noise at every step."""
        self._trim(at)
        run, config, t = at.run, self.config, at.plan.t
        predicted = self._predict(at, self.predict_x0)
        corrected: Value = at.sample
        if run.stage is not None:
            start, z = run.stage
            older = min(config.corrector_order - 1, len(run.history))
            corrected = self._corrected(at, start, predicted, older, z, float(self.tau_func(t[at.i - 1])))
        known, z = (predicted, *run.history[:2]), at.noise(generator)
        order, tau = self._order(at, config.predictor_order, len(known)), float(self.tau_func(t[at.i]))
        prev_sample = self._predicted(at, corrected, known, order, z, tau)
        prev_sample, corrected = at.remember(known, prev_sample, corrected)
        run.stage = corrected, z
        return (prev_sample,)
