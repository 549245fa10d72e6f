"""DPM-Solver and DPM-Solver++, singlestep: groups of one, two or three evaluations that restart from their first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, exactly_one, one_of, refuse_timesteps, step_count
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.grid import Grid
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.prediction import PREDICTION_TYPES, VARIANCE_TYPES
from calotype.schedulers.preserving import PreservingScheduler
from calotype.schedulers.run import Plan
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")


class DPMSolverSinglestepScheduler(PreservingScheduler):
    """Each group integrates from its own first level: order 1, then 2, then 3 (Lu et al., arXiv:2211.01095, alg. 1)."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        self._translate("algorithm_type", {"deis": "dpmsolver++"})
        self._translate("solver_type", dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"))
        config = self.config
        self._check((*PREDICTION_TYPES, "flow_prediction"))
        one_of("algorithm_type", config.algorithm_type, ALGORITHMS)
        one_of("solver_type", config.solver_type, ("midpoint", "heun"))
        one_of("solver_order", solver_order, (1, 2, 3))
        one_of("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        one_of("variance_type", variance_type, (None, *VARIANCE_TYPES))
        one_of("time_shift_type", time_shift_type, ("exponential",))
        self._refuse_flow()
        self._data = config.algorithm_type != "dpmsolver"
        self._tau = 1.0 if config.algorithm_type.startswith("sde") else 0.0
        if not self._data and final_sigmas_type == "zero":
            raise InputError(
                "algorithm_type='dpmsolver' predicts noise and cannot step to a level without any: set "
                "final_sigmas_type='sigma_min', or algorithm_type='dpmsolver++'."
            )
        conversion(config)
        self._make_table()

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

    def _begin_initial(self) -> None:
        self._begin_training_grid()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps. ``mu``: flow levels are shifted by exp(mu)."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if timesteps is not None:
            refuse_timesteps(self.config)
        steps = step_count(num_inference_steps if timesteps is None else len(timesteps))
        t, levels = self._ladder(steps, timesteps, mu)
        final = 0.0 if self.config.final_sigmas_type == "zero" else self._table.kappa[0]
        self._begin_grid(Grid(t, np.append(levels, final)), device, steps, torch.int64)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample one step on, integrated from the sample at the beginning of its group."""
        self._running()
        run, i = self._locate(timestep)
        plan = run.plan
        if self.config.variance_type in ("learned", "learned_range"):
            model_output = model_output[:, : sample.shape[1]]
        predicted = self._predict(i, sample, model_output, data=self._data)
        if "orders" not in plan.memo:
            plan.memo["orders"] = self.order_list
        # a run that begins inside a group has not seen the group's first levels
        order = min(plan.memo["orders"][i], len(run.history) + 1)
        if order == 1:
            run.history, run.stage = (), sample
        run.history = (predicted, *run.history[:2])
        if (i, order) not in plan.memo:
            plan.memo[i, order] = self._update(plan, i, order)
        update = plan.memo[i, order]
        terms = [(update.sample, run.stage), *zip(update.predictions, reversed(run.history), strict=False)]
        if self._tau:
            z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
            terms.append((update.noise, z))
        prev_sample = affine(*terms)
        run.index = i + 1
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)

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
