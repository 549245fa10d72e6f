"""DPM-Solver++ multistep in EDM's coordinates, as ODE or SDE (Lu et al., arXiv:2211.01095; Playground v2.5)."""

from __future__ import annotations

import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import one_of, step_count
from calotype.schedulers.edm import EDMScheduler, quarter_log, ramp
from calotype.schedulers.multistep import multistep_update, step_order
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.prediction import Limits


class EDMDPMSolverMultistepScheduler(EDMScheduler):
    """One exponential integral a step over the last x̂0, with α = 1."""

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        solver_order: int = 2,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        self._translate("algorithm_type", {"deis": "dpmsolver++"})
        self._translate("solver_type", dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"))
        self._configure()
        one_of("algorithm_type", self.config.algorithm_type, ("dpmsolver++", "sde-dpmsolver++"))
        one_of("solver_type", self.config.solver_type, ("midpoint", "heun"))
        one_of("solver_order", solver_order, (1, 2, 3))
        self._tau = 1.0 if self.config.algorithm_type.startswith("sde") else 0.0
        self._limits = Limits()
        if thresholding:
            self._limits = Limits(ratio=dynamic_thresholding_ratio, largest=sample_max_value)

    def _time(self, sigma: torch.Tensor) -> torch.Tensor:
        return quarter_log(sigma)

    def _begin_initial(self) -> None:
        levels = self._levels(ramp(self.config.num_train_timesteps, torch.float32))
        self._begin_edm(levels, 0.0, None, None)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        levels = self._levels(ramp(steps, torch.float32))
        self._begin_edm(levels, self._final(self.config.sigma_min), device, steps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The sample one step on; the SDE variant draws noise at every step."""
        self._running()
        run, i = self._locate(timestep)
        config, plan = self.config, run.plan
        x0 = self._limits.apply(self._clean(plan.kappa[i]).of(sample, model_output))
        run.history = (x0, *run.history[: config.solver_order - 1])
        order = step_order(config, i, len(run.history), len(plan.t))
        if (i, order) not in plan.memo:
            plan.memo[i, order] = multistep_update(
                plan.levels, i, order, config.solver_type, data=True, tau=self._tau
            )
        update = plan.memo[i, order]
        terms = [(update.sample, sample), *zip(update.predictions, run.history, strict=False)]
        if self._tau:
            z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
            terms.append((update.noise, z))
        prev_sample = affine(*terms)
        run.index = i + 1
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)
