"""DPM-Solver and DPM-Solver++, multistep, as ODE or SDE (Lu et al., arXiv:2206.00927 and 2211.01095)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import grid, prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, exactly_one, one_of, refuse_timesteps, step_count
from calotype.schedulers.exponential import Update, exponential_update
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.preserving import PreservingScheduler
from calotype.schedulers.run import Plan
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


class DPMSolverMultistepScheduler(PreservingScheduler):
    """One exponential integral a step over the last ``solver_order`` predictions: of x̂0 (``++``) or of ε̂."""

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
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        self._translate("algorithm_type", {"deis": "dpmsolver++"})
        self._translate("solver_type", dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"))
        config = self.config
        self._check((*prediction.PREDICTION_TYPES, "flow_prediction"))
        one_of("algorithm_type", config.algorithm_type, ALGORITHMS)
        one_of("solver_type", config.solver_type, ("midpoint", "heun"))
        one_of("solver_order", solver_order, (1, 2, 3))
        one_of("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        one_of("variance_type", variance_type, (None, "learned", "learned_range"))
        one_of("time_shift_type", time_shift_type, ("exponential",))
        self._data = config.algorithm_type.endswith("++")
        self._tau = 1.0 if config.algorithm_type.startswith("sde") else 0.0
        if not self._data and final_sigmas_type == "zero":
            raise InputError(
                f"algorithm_type={config.algorithm_type!r} predicts noise and cannot step to a level without any: set "
                f"final_sigmas_type='sigma_min', or algorithm_type='{config.algorithm_type}++'."
            )
        if prediction_type == "flow_prediction" and not use_flow_sigmas:
            raise InputError(
                "prediction_type='flow_prediction' has a meaning only with use_flow_sigmas=True."
            )
        self._conversion = conversion(config)
        self._make_table(zero_snr_floor=True)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps. ``mu``: flow levels are shifted by exp(mu)."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        config, table = self.config, self._table
        if mu is not None and not config.use_dynamic_shifting:
            raise InputError("mu shifts the noise levels only with use_dynamic_shifting=True.")
        if timesteps is not None:
            refuse_timesteps(config)
            t = np.asarray(timesteps).astype(np.int64)
            steps = step_count(len(t))
        else:
            steps = step_count(num_inference_steps)

        if self._conversion or config.use_lu_lambdas:
            kind = self._conversion
            if config.use_lu_lambdas and kind != "karras":
                kind, levels = "lu", grid.lu(float(table.log_kappa[0]), float(table.log_kappa[-1]), steps)
            else:
                levels = grid.converted(str(kind), float(table.kappa[0]), float(table.kappa[-1]), steps)
            t = self._steps_of(levels, rounded=kind in ("karras", "lu"))
        elif config.use_flow_sigmas:
            shift = config.flow_shift if mu is None else float(np.exp(mu))
            levels = grid.shifted(1.0 - np.linspace(1, 1 / config.num_train_timesteps, steps + 1), shift)
            levels = levels[::-1][:-1]
            t = levels * config.num_train_timesteps
        else:
            if timesteps is None:
                t = self._spaced_steps(steps)
            levels = np.interp(t, np.arange(len(table.kappa)), table.kappa)
        final = 0.0 if config.final_sigmas_type == "zero" else table.kappa[0]
        self._begin_grid(grid.Grid(t, np.append(levels, final)), device, steps, torch.int64)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample one step on. The SDE variants draw float32 noise, or take ``variance_noise``."""
        self._running()
        run, i = self._locate(timestep)
        config, plan = self.config, run.plan
        dtype = model_output.dtype
        if config.variance_type in ("learned", "learned_range"):
            model_output = model_output[:, : sample.shape[1]]
        predicted = self._predict(i, sample, model_output, data=self._data)
        run.history = (predicted, *run.history[: config.solver_order - 1])
        order = self._order(i, len(run.history), len(plan.t))
        if (i, order) not in plan.memo:
            plan.memo[i, order] = self._update(plan, i, order)
        update = plan.memo[i, order]
        terms = [
            (update.sample, sample.to(torch.float32)),
            *zip(update.predictions, run.history, strict=False),
        ]
        if self._tau:
            if variance_noise is None:
                z = randn_tensor(model_output.shape, generator, model_output.device, torch.float32)
            else:
                z = variance_noise.to(model_output.device, torch.float32)
            terms.append((update.noise, z))
        prev_sample = affine(*terms).to(dtype)
        run.index = i + 1
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)

    def _order(self, i: int, known: int, steps: int) -> int:
        """The order of step ``i``: short runs end with lower ones, and no step to a level without noise is above 1."""
        config = self.config
        order = min(config.solver_order, known)
        few = config.lower_order_final and steps < 15
        if i == steps - 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero"):
            return 1
        return min(order, 2) if i == steps - 2 and few else order

    def _update(self, plan: Plan, i: int, order: int) -> Update:
        """The weights of step ``i``."""
        rule = ("exact", self.config.solver_type, "halved")[order - 1]
        return exponential_update(
            plan.levels[i],
            plan.levels[i + 1],
            [plan.levels[i - k] for k in range(1, order)],
            data=self._data,
            tau=self._tau,
            rule="exact" if rule == "heun" else rule,
        )
