"""SDE-DPM-Solver++ with Brownian noise, for networks that take the time (2/π)·arctan σ (Stable Audio)."""

from __future__ import annotations

import math

import torch

from calotype.core.random import Generators
from calotype.schedulers.affine import affine
from calotype.schedulers.brownian import BrownianNoise
from calotype.schedulers.checks import one_of, step_count
from calotype.schedulers.edm import EDMScheduler, ramp
from calotype.schedulers.multistep import multistep_update, step_order
from calotype.schedulers.outputs import SchedulerOutput


class CosineDPMSolverMultistepScheduler(EDMScheduler):
    """One exponential integral a step over the last two x̂0 with τ = 1 and α = 1."""

    def __init__(
        self,
        sigma_min: float = 0.3,
        sigma_max: float = 500,
        sigma_data: float = 1.0,
        sigma_schedule: str = "exponential",
        num_train_timesteps: int = 1000,
        solver_order: int = 2,
        prediction_type: str = "v_prediction",
        rho: float = 7.0,
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        self._translate("solver_type", dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"))
        self._configure()
        one_of("solver_type", self.config.solver_type, ("midpoint", "heun"))
        one_of("solver_order", solver_order, (1, 2, 3))

    def _time(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma.atan() / math.pi * 2

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
        """The sample one step on; the Brownian path has the generator's initial seed (or each item its own)."""
        self._running()
        run, i = self._locate(timestep)
        config, plan = self.config, run.plan
        if run.noise is None:
            seed: int | list[int] | None = None
            if isinstance(generator, torch.Generator):
                seed = generator.initial_seed()
            elif generator is not None:
                seed = [g.initial_seed() for g in generator]
            run.noise = BrownianNoise(model_output, config.sigma_min, config.sigma_max, seed)
        x0 = self._clean(plan.kappa[i]).of(sample, model_output)
        run.history = (x0, *run.history[: config.solver_order - 1])
        order = step_order(config, i, len(run.history), len(plan.t))
        if (i, order) not in plan.memo:
            plan.memo[i, order] = multistep_update(
                plan.levels, i, order, config.solver_type, data=True, tau=1.0
            )
        update = plan.memo[i, order]
        terms = [(update.sample, sample), *zip(update.predictions, run.history, strict=False)]
        if update.noise:
            terms.append((update.noise, run.noise(plan.kappa[i], plan.kappa[i + 1])))
        prev_sample = affine(*terms)
        run.index = i + 1
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)
