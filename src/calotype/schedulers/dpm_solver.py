"""DPM-Solver and DPM-Solver++, multistep and singlestep, as ODE or SDE, down and up; and DEIS: one exponential integral
a step.

Lu et al., arXiv:2206.00927 and 2211.01095; Zhang & Chen, arXiv:2204.13902.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators
from calotype.schedulers.affine import Value, cast
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.grid import spaced
from calotype.schedulers.ladders import PreservingScheduler
from calotype.schedulers.levels import PREDICTION_TYPES, VARIANCE_TYPES
from calotype.schedulers.options import (
    Device,
    Numbers,
    choice,
    constructor,
    conversion,
    step_count,
    steps_or_timesteps,
)
from calotype.schedulers.stepping import Step, Values, once, stepping

PREDICTIONS = choice(*PREDICTION_TYPES, "flow_prediction")
VARIANCES = choice(None, *VARIANCE_TYPES)
"""A fixed variance has no meaning for these solvers; the channels of a learned one are left out."""
SOLVER_TYPES = choice("midpoint", "heun", others=dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"))
OF_DPM: dict[str, Any] = {
    "prediction_type": PREDICTIONS,
    "solver_type": SOLVER_TYPES,
    "variance_type": VARIANCES,
}
EXPONENTIAL_SHIFT = choice("exponential")


def multistep(
    config: Mapping[str, Any],
    at: Step,
    predicted: Value,
    z: Tensor | None = None,
    *,
    data: bool,
    tau: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Values:
    """The sample one step on, an integral of the last predictions, which the run remembers. With ``dtype`` the sample
    is cast to it, and back to the output's.

    Short runs end with lower orders, and no step to a level without noise is above the first. DPM-Solver's second
    order is by ``solver_type``, its third with half of the curvature; DEIS's are exact.
    """
    plan, i, steps = at.plan, at.i, len(at.plan.t)
    known = (predicted, *at.run.history[: config["solver_order"] - 1])
    if (i, len(known)) not in plan.memo:
        order = len(known)
        few = config["lower_order_final"] and steps < 15
        if i == steps - 1 and (
            config.get("euler_at_final") or few or config.get("final_sigmas_type") == "zero"
        ):
            order = 1
        elif i == steps - 2 and few:
            order = min(order, 2)
        rules = {"midpoint": ("exact", "midpoint", "halved"), "heun": ("exact", "exact", "halved")}
        rule = rules.get(config["solver_type"], ("exact",) * 3)[order - 1]
        s, t, *others = (plan.levels[i + k] for k in (0, 1, -1, -2)[: order + 1])
        plan.memo[i, len(known)] = exponential_update(s, t, others, data=data, tau=tau, rule=rule)
    update = plan.memo[i, len(known)]
    if dtype is None:
        return at.remember(known, update.of(at.sample, known, z))
    return at.remember(known, update.of(cast(at.sample, dtype), known, z, at.output.dtype))


class DPMSolverScheduler(PreservingScheduler):
    """Base of DPM-Solver in all its forms: what is integrated, and whether as an SDE."""

    def _prepare_solver(self) -> None:
        kind = self.config.algorithm_type
        self._data, self._tau = kind.endswith("++"), 1.0 if kind.startswith("sde") else 0.0
        if not self._data and self.config.get("final_sigmas_type") == "zero":
            raise InputError(
                f"algorithm_type={kind!r} predicts noise and cannot step to a level without any: set "
                f"final_sigmas_type='sigma_min', or algorithm_type='{kind}++'."
            )
        self._prepare()

    def _begin_down(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        mu: float | None = None,
        timesteps: Numbers = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps. ``mu``: flow levels are shifted by exp(mu)."""
        steps = steps_or_timesteps(self.config, num_inference_steps, timesteps)
        self._begin_ladder(*self._ladder(steps, timesteps, mu), device)


class MultistepScheduler(DPMSolverScheduler):
    """Base of DPMSolverMultistepScheduler and its inverse."""

    @stepping(begun=True)
    def step(self, at: Step, generator: Generators = None, variance_noise: Tensor | None = None) -> Values:
        """The sample one step on. The SDE variants draw float32 noise, or take ``variance_noise``."""
        self._trim(at)
        predicted, z = self._predict(at, self._data), None
        if self._tau:
            z = at.noise(generator, torch.float32) if variance_noise is None else variance_noise
            z = z.to(at.output.device, torch.float32)
        return multistep(self.config, at, predicted, z, data=self._data, tau=self._tau, dtype=torch.float32)


ALGORITHMS = choice(
    "dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++", others={"deis": "dpmsolver++"}
)


class DPMSolverMultistepScheduler(MultistepScheduler):
    """One exponential integral a step over the last ``solver_order`` predictions: of x̂0 (``++``) or of ε̂."""

    _zero_snr_floor = True
    _unrounded = "squaredcos_cap_v2"

    __init__ = constructor(
        "TABLE solver_order prediction_type THRESHOLDING algorithm_type solver_type lower_order_final "
        "euler_at_final CONVERTED use_lu_lambdas use_flow_sigmas flow_shift final_sigmas_type lambda_min_clipped "
        "variance_type SPACED rescale_betas_zero_snr use_dynamic_shifting time_shift_type",
        setup=DPMSolverScheduler._prepare_solver,
        algorithm_type=ALGORITHMS,
        time_shift_type=EXPONENTIAL_SHIFT,
        **OF_DPM,
    )

    set_timesteps = DPMSolverScheduler._begin_down


class DPMSolverMultistepInverseScheduler(MultistepScheduler):
    """The same upward, from a picture to the noise that leads to it, ending at the table's highest level."""

    _ascending = True

    __init__ = constructor(
        "TABLE solver_order prediction_type THRESHOLDING algorithm_type solver_type lower_order_final "
        "euler_at_final CONVERTED use_flow_sigmas flow_shift lambda_min_clipped variance_type SPACED",
        setup=DPMSolverScheduler._prepare_solver,
        algorithm_type=ALGORITHMS,
        **OF_DPM,
    )

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Begin a run of so many steps upward."""
        steps, config, top = step_count(num_inference_steps), self.config, self._usable
        if conversion(config) or config.use_flow_sigmas:
            t, ladder = (x[::-1][:steps] for x in self._ladder(max(steps, 2)))
            return self._begin_ladder(t, ladder, device, ladder[-1])
        if config.timestep_spacing == "linspace":
            t = np.linspace(0, top - 1, steps + 1)[:steps].round()
        elif config.timestep_spacing == "leading":
            t = spaced("leading", steps + 1, top, config.steps_offset)[:0:-1]
        else:
            t = self._spaced_steps(steps)[::-1]
        return self._begin_ladder(t, self._of_steps(t), device, self._table.kappa[top - 1])


class DPMSolverSinglestepScheduler(DPMSolverScheduler):
    """Groups of one, two or three evaluations, each integrated from its own first level: order 1, then 2, then 3 (Lu et
    al., arXiv:2211.01095, alg. 1)."""

    __init__ = constructor(
        "TABLE solver_order prediction_type THRESHOLDING algorithm_type solver_type lower_order_final CONVERTED "
        "use_flow_sigmas flow_shift final_sigmas_type lambda_min_clipped variance_type use_dynamic_shifting "
        "time_shift_type",
        setup=DPMSolverScheduler._prepare_solver,
        algorithm_type=choice("dpmsolver++", "dpmsolver", "sde-dpmsolver++", others={"deis": "dpmsolver++"}),
        lower_order_final=False,
        time_shift_type=EXPONENTIAL_SHIFT,
        **OF_DPM,
    )

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """The order of each step. Groups are cut short where they do not fit, where ``lower_order_final`` asks for
        it, and at a final level without noise."""
        order, steps, config = self.config.solver_order, num_inference_steps, self.config
        zero = config.final_sigmas_type == "zero"
        orders = [k % order + 1 for k in range(steps)]
        if steps % order == 0 and (config.lower_order_final or zero) and order > 1:
            orders[-1] = 1
            if order == 3:
                orders[-3:] = [1, 2, 1]
        if zero:
            orders[-1] = 1
        return orders

    @property
    def order_list(self) -> list[int]:
        """The order of each step of the run."""
        return self.get_order_list(len(self._run.plan.t))

    set_timesteps = DPMSolverScheduler._begin_down

    @stepping(begun=True)
    def step(self, at: Step, generator: Generators = None) -> Values:
        """The sample one step on, integrated from the sample at the beginning of its group."""
        self._trim(at)
        run = at.run
        # a run that begins inside a group has not seen the group's first levels
        order, update = self._update(at.i, len(run.history) + 1)
        if order == 1:
            run.history, run.stage = (), at.sample
        known = (self._predict(at, self._data), *run.history[:2])
        z = at.noise(generator) if self._tau else None
        return at.remember(known, update.of(run.stage, reversed(known), z))

    @once
    def _update(self, i: int, known: int) -> tuple[int, Update]:
        """The order of step ``i``, and its weights from the beginning of its group over the group's predictions, oldest
        first.

        `midpoint` takes the slope of the third order from its newest prediction alone.
        """
        order, levels = min(self.order_list[i], known), self._run.plan.levels
        midpoint = self.config.solver_type == "midpoint"
        rule, chord = "midpoint" if midpoint and order == 2 else "exact", midpoint and order == 3
        first = i - order + 1
        others = levels[i if chord else first + 1 : i + 1]
        update = exponential_update(
            levels[first], levels[i + 1], others, data=self._data, tau=self._tau, rule=rule
        )
        if chord:
            oldest, newest = update.predictions
            update = update._replace(predictions=(oldest, 0.0, newest))
        return order, update


class DEISMultistepScheduler(PreservingScheduler):
    """The exact integral of the polynomial through the last ε̂, x' = (α'/α)·x − α'·Σ m_j ∫e^{−λ}ℓ_j dλ: log-ρ."""

    __init__ = constructor(
        "TABLE solver_order prediction_type THRESHOLDING algorithm_type solver_type lower_order_final "
        "CONVERTED use_flow_sigmas flow_shift SPACED use_dynamic_shifting time_shift_type",
        prediction_type=PREDICTIONS,
        algorithm_type=choice("deis", others=dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis")),
        solver_type=choice("logrho", others=dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho")),
        time_shift_type=EXPONENTIAL_SHIFT,
    )

    def set_timesteps(self, num_inference_steps: int, device: Device = None, mu: float | None = None) -> None:
        """Begin a run of so many steps. ``mu``: flow levels are shifted by exp(mu)."""
        t, ladder = self._ladder(step_count(num_inference_steps), mu=mu)
        self._begin_ladder(t, ladder, device, self._repeated_or_lowest(ladder))

    @stepping(begun=True)
    def step(self, at: Step) -> Values:
        """The sample one step on."""
        return multistep(self.config, at, self._predict(at, False), data=False)
