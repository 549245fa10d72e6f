"""DPM-Solver and DPM-Solver++, singlestep: groups of one, two or three evaluations that restart from their first."""

from __future__ import annotations

from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine, evaluate
from calotype.schedulers.checks import steps_or_timesteps
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.multistep import EXPONENTIAL_SHIFT, PREDICTIONS, SOLVER_TYPES, VARIANCES
from calotype.schedulers.options import CONVERTED, TABLE, THRESHOLDING, Device, Numbers, choice, constructor
from calotype.schedulers.preserving import PreservingScheduler
from calotype.schedulers.run import Plan, Run
from calotype.schedulers.stepping import stepping


class DPMSolverSinglestepScheduler(PreservingScheduler):
    """Each group integrates from its own first level: order 1, then 2, then 3 (Lu et al., arXiv:2211.01095, alg. 1)."""

    def _prepare_solver(self) -> None:
        kind = self.config.algorithm_type
        self._data, self._tau = kind != "dpmsolver", 1.0 if kind.startswith("sde") else 0.0
        if not self._data and self.config.final_sigmas_type == "zero":
            raise InputError(
                "algorithm_type='dpmsolver' predicts noise and cannot step to a level without any: set "
                "final_sigmas_type='sigma_min', or algorithm_type='dpmsolver++'."
            )
        self._prepare()

    __init__ = constructor(
        f"{TABLE} solver_order prediction_type {THRESHOLDING} algorithm_type solver_type lower_order_final {CONVERTED} "
        "use_flow_sigmas flow_shift final_sigmas_type lambda_min_clipped variance_type use_dynamic_shifting "
        "time_shift_type",
        setup=_prepare_solver,
        prediction_type=PREDICTIONS,
        algorithm_type=choice("dpmsolver++", "dpmsolver", "sde-dpmsolver++", others={"deis": "dpmsolver++"}),
        solver_type=SOLVER_TYPES,
        lower_order_final=False,
        variance_type=VARIANCES,
        time_shift_type=EXPONENTIAL_SHIFT,
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

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        mu: float | None = None,
        timesteps: Numbers = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps. ``mu``: flow levels are shifted by exp(mu)."""
        steps = steps_or_timesteps(self.config, num_inference_steps, timesteps)
        self._begin_to_final(*self._ladder(steps, timesteps, mu), device, steps)

    @stepping(begun=True)
    def step(
        self, run: Run, i: int, output: Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Tensor]:
        """The sample one step on, integrated from the sample at the beginning of its group."""
        plan, output = run.plan, self._mean(output, sample)
        if "orders" not in plan.memo:
            plan.memo["orders"] = self.order_list
        # a run that begins inside a group has not seen the group's first levels
        order = min(plan.memo["orders"][i], len(run.history) + 1)
        if order == 1:
            run.history, run.stage = (), sample
        known = (self._predict(i, sample, output, data=self._data), *run.history[:2])
        if (i, order) not in plan.memo:
            plan.memo[i, order] = self._update(plan, i, order)
        update = plan.memo[i, order]
        terms = [(update.sample, run.stage), *zip(update.predictions, reversed(known), strict=False)]
        if self._tau:
            z = randn_tensor(output.shape, generator, output.device, output.dtype)
            terms.append((update.noise, z))
        prev_sample, *run.history = evaluate(affine(*terms), *known)
        return (prev_sample,)

    def _update(self, plan: Plan, i: int, order: int) -> Update:
        """The weights of step ``i`` from the beginning of its group, over the group's predictions, oldest first.

        `midpoint` takes the slope of the third order from its newest prediction alone.
        """
        rule, chord = "exact", False
        if self.config.solver_type == "midpoint":
            rule, chord = ("midpoint" if order == 2 else "exact"), order == 3
        first = i - order + 1
        nodes = [i] if chord else range(first + 1, i + 1)
        others = [plan.levels[k] for k in nodes]
        update = exponential_update(
            plan.levels[first], plan.levels[i + 1], others, data=self._data, tau=self._tau, rule=rule
        )
        if chord:
            oldest, newest = update.predictions
            update = update._replace(predictions=(oldest, 0.0, newest))
        return update
