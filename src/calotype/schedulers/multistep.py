"""DPM-Solver and DPM-Solver++, multistep, as ODE or SDE, down and up; and DEIS: one exponential integral a step.

Lu et al., arXiv:2206.00927 and 2211.01095; Zhang & Chen, arXiv:2204.13902.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import Value, affine, cast, evaluate
from calotype.schedulers.checks import conversion, step_count, steps_or_timesteps
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.grid import Grid, spaced
from calotype.schedulers.options import (
    CONVERTED,
    SPACED,
    TABLE,
    THRESHOLDING,
    Device,
    Numbers,
    choice,
    constructor,
)  # fmt: skip
from calotype.schedulers.prediction import PREDICTION_TYPES, VARIANCE_TYPES
from calotype.schedulers.preserving import PreservingScheduler
from calotype.schedulers.run import Run
from calotype.schedulers.stepping import stepping
from calotype.schedulers.transfer import Level

PREDICTIONS = choice(*PREDICTION_TYPES, "flow_prediction")
VARIANCES = choice(None, *VARIANCE_TYPES)
"""A fixed variance has no meaning for these solvers; the channels of a learned one are left out."""
ALGORITHMS = choice(
    "dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++", others={"deis": "dpmsolver++"}
)
SOLVER_TYPES = choice("midpoint", "heun", others=dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"))
EXPONENTIAL_SHIFT = choice("exponential")


def step_order(config: Mapping[str, Any], i: int, known: int, steps: int) -> int:
    """The order of step ``i`` of ``steps`` with ``known`` predictions: short runs end with lower ones, and no step to
    a level without noise is above 1."""
    order = min(config["solver_order"], known)
    few = config["lower_order_final"] and steps < 15
    last = config.get("euler_at_final") or few or config.get("final_sigmas_type") == "zero"
    if i == steps - 1 and last:
        return 1
    return min(order, 2) if i == steps - 2 and few else order


def multistep_update(
    levels: Sequence[Level], i: int, order: int, solver_type: str, *, data: bool, tau: float
) -> Update:
    """The weights of step ``i`` over the predictions at steps i, i−1, …: DPM-Solver's second order by
    ``solver_type``, its third with half of the curvature; DEIS's are exact."""
    rules = {"midpoint": ("exact", "midpoint", "halved"), "heun": ("exact", "exact", "halved")}
    rule = rules.get(solver_type, ("exact",) * 3)[order - 1]
    others = [levels[i - k] for k in range(1, order)]
    return exponential_update(levels[i], levels[i + 1], others, data=data, tau=tau, rule=rule)


def multistep(
    config: Mapping[str, Any], run: Run, i: int, predicted: Value, *, data: bool, tau: float = 0.0
) -> tuple[Update, tuple[Value, ...]]:
    """The update of step ``i``, and the predictions that it combines, newest first."""
    plan, known = run.plan, (predicted, *run.history[: config["solver_order"] - 1])
    order = step_order(config, i, len(known), len(plan.t))
    if (i, order) not in plan.memo:
        plan.memo[i, order] = multistep_update(
            plan.levels, i, order, config["solver_type"], data=data, tau=tau
        )
    return plan.memo[i, order], known


def remembered(run: Run, prev_sample: Value, known: Iterable[Value]) -> tuple[Tensor]:
    """The sample, computed together with the predictions, which the run keeps."""
    sample, *run.history = evaluate(prev_sample, *known)
    return (sample,)


class MultistepScheduler(PreservingScheduler):
    """Base of DPMSolverMultistepScheduler and its inverse."""

    def _prepare_solver(self) -> None:
        kind = self.config.algorithm_type
        self._data, self._tau = kind.endswith("++"), 1.0 if kind.startswith("sde") else 0.0
        if not self._data and self.config.get("final_sigmas_type") == "zero":
            raise InputError(
                f"algorithm_type={kind!r} predicts noise and cannot step to a level without any: set "
                f"final_sigmas_type='sigma_min', or algorithm_type='{kind}++'."
            )
        self._prepare()

    @stepping(begun=True)
    def step(
        self,
        run: Run,
        i: int,
        output: Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
    ) -> tuple[Tensor]:
        """The sample one step on. The SDE variants draw float32 noise, or take ``variance_noise``."""
        output = self._mean(output, sample)
        predicted = self._predict(i, sample, output, data=self._data)
        update, known = multistep(self.config, run, i, predicted, data=self._data, tau=self._tau)
        terms = [(update.sample, cast(sample, torch.float32)), *zip(update.predictions, known, strict=False)]
        if self._tau:
            z = variance_noise
            if z is None:
                z = randn_tensor(output.shape, generator, output.device, torch.float32)
            terms.append((update.noise, z.to(output.device, torch.float32)))
        return remembered(run, affine(*terms, dtype=output.dtype), known)


class DPMSolverMultistepScheduler(MultistepScheduler):
    """One exponential integral a step over the last ``solver_order`` predictions: of x̂0 (``++``) or of ε̂."""

    _zero_snr_floor = True

    __init__ = constructor(
        f"{TABLE} solver_order prediction_type {THRESHOLDING} algorithm_type solver_type lower_order_final "
        f"euler_at_final {CONVERTED} use_lu_lambdas use_flow_sigmas flow_shift final_sigmas_type lambda_min_clipped "
        f"variance_type {SPACED} rescale_betas_zero_snr use_dynamic_shifting time_shift_type",
        setup=MultistepScheduler._prepare_solver,
        prediction_type=PREDICTIONS,
        algorithm_type=ALGORITHMS,
        solver_type=SOLVER_TYPES,
        variance_type=VARIANCES,
        time_shift_type=EXPONENTIAL_SHIFT,
    )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        mu: float | None = None,
        timesteps: Numbers = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps. ``mu``: flow levels are shifted by exp(mu)."""
        steps = steps_or_timesteps(self.config, num_inference_steps, timesteps)
        rounded = self.config.beta_schedule != "squaredcos_cap_v2"
        self._begin_to_final(*self._ladder(steps, timesteps, mu, rounded=rounded), device, steps)


class DPMSolverMultistepInverseScheduler(MultistepScheduler):
    """The same upward, from a picture to the noise that leads to it, ending at the table's highest level."""

    _ascending = True

    __init__ = constructor(
        f"{TABLE} solver_order prediction_type {THRESHOLDING} algorithm_type solver_type lower_order_final "
        f"euler_at_final {CONVERTED} use_flow_sigmas flow_shift lambda_min_clipped variance_type {SPACED}",
        setup=MultistepScheduler._prepare_solver,
        prediction_type=PREDICTIONS,
        algorithm_type=ALGORITHMS,
        solver_type=SOLVER_TYPES,
        variance_type=VARIANCES,
    )

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Begin a run of so many steps upward."""
        steps = step_count(num_inference_steps)
        config, kappa = self.config, self._table.kappa
        if conversion(config) or config.use_flow_sigmas:
            t, levels = (x[::-1][:steps] for x in self._ladder(max(steps, 2)))
            final = levels[-1]
        else:
            top, spacing = self._usable, config.timestep_spacing
            if spacing == "linspace":
                t = np.linspace(0, top - 1, steps + 1)[:steps].round()
            elif spacing == "leading":
                t = spaced(spacing, steps + 1, top, config.steps_offset)[:0:-1]
            else:
                t = self._spaced_steps(steps)[::-1]
            levels, final = np.interp(t, np.arange(len(kappa)), kappa), kappa[top - 1]
        self._begin_grid(Grid(t, np.append(levels, final)), device, steps, torch.int64)


class DEISMultistepScheduler(PreservingScheduler):
    """The exact integral of the polynomial through the last ε̂, x' = (α'/α)·x − α'·Σ m_j ∫e^{−λ}ℓ_j dλ: log-ρ."""

    __init__ = constructor(
        f"{TABLE} solver_order prediction_type {THRESHOLDING} algorithm_type solver_type lower_order_final "
        f"{CONVERTED} use_flow_sigmas flow_shift {SPACED} use_dynamic_shifting time_shift_type",
        setup=PreservingScheduler._prepare,
        prediction_type=PREDICTIONS,
        algorithm_type=choice("deis", others=dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis")),
        solver_type=choice("logrho", others=dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho")),
        time_shift_type=EXPONENTIAL_SHIFT,
    )

    def set_timesteps(self, num_inference_steps: int, device: Device = None, mu: float | None = None) -> None:
        """Begin a run of so many steps. ``mu``: flow levels are shifted by exp(mu)."""
        steps = step_count(num_inference_steps)
        t, levels = self._ladder(steps, mu=mu)
        self._begin_to_final(t, levels, device, steps, self._repeated_or_lowest(levels))

    @stepping(begun=True)
    def step(self, run: Run, i: int, output: Tensor, sample: Tensor) -> tuple[Tensor]:
        """The sample one step on."""
        predicted = self._predict(i, sample, output, data=False)
        update, known = multistep(self.config, run, i, predicted, data=False)
        terms = zip(update.predictions, known, strict=False)
        return remembered(run, affine((update.sample, sample), *terms), known)
