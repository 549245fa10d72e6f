"""DPM-Solver++ SDE: two exponential steps of first order, the second with x̂0 of the first, and Brownian noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.schedulers.affine import affine
from calotype.schedulers.brownian import BrownianNoise
from calotype.schedulers.checks import conversion, step_count
from calotype.schedulers.outputs import PredictionSchedulerOutput as DPMSolverSDESchedulerOutput
from calotype.schedulers.run import Plan
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from calotype.schedulers.transfer import Level, fresh_noise, transfer
from calotype.schedulers.two_stage import MidpointScheduler


class DPMSolverSDEScheduler(MidpointScheduler):
    """An ancestral step to the midpoint √(κ·κ'), then one over the whole step from its beginning with x̂0 from there
    (Lu et al., arXiv:2211.01095; Song et al., arXiv:2011.13456)."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        noise_sampler_seed: int | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        self._check()
        conversion(self.config)
        self._make_table()
        self.noise_sampler_seed = noise_sampler_seed

    def _begin_initial(self) -> None:
        self.set_timesteps(self.config.num_train_timesteps)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Begin a run of so many steps; ``timesteps`` then has two entries a step, one for the last."""
        t, kappa = self._ladder(step_count(num_inference_steps), None, num_train_timesteps, np.float64)
        self._begin_stages(t, kappa, np.sqrt(kappa[:-2] * kappa[1:-1]), device, torch.float64, finals=1)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        s_noise: float = 1.0,
    ) -> DPMSolverSDESchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample at the midpoint after a step's first evaluation, at its end after the second."""
        run, i = self._locate(timestep)
        plan = run.plan
        x0 = self._clean(self.config.prediction_type, plan.kappa[i]).of(sample, model_output)
        if run.noise is None:
            positive = [kappa for kappa in plan.kappa if kappa > 0]
            run.noise = BrownianNoise(sample, min(positive), max(positive), self.noise_sampler_seed)
        first = i if run.stage is None else i - 1
        start, run.stage = (sample, sample) if run.stage is None else (run.stage, None)
        s, t = (Level(1.0, plan.kappa[k]) for k in (first, i + 1))
        up = fresh_noise(s, t, 1.0)
        kept = transfer(t, up)[1] / s.sigma
        prev_sample = affine((kept, start), (1 - kept, x0))
        if t.sigma > 0:
            z = run.noise(*self._queried(plan, first, i + 1))
            prev_sample = affine((1.0, prev_sample), (s_noise * up, z))
        else:
            run.stage = None
        run.index = i + 1
        return DPMSolverSDESchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)

    @staticmethod
    def _queried(plan: Plan, first: int, last: int) -> tuple[float, float]:
        """The levels of a step as the path is asked for them: by way of λ in float32, since a path is rough and shows
        a difference in the seventh digit."""
        if (first, last) not in plan.memo:
            ends = [first, last if last > first + 1 else min(last + 1, len(plan.kappa) - 1)]
            t = torch.tensor([plan.kappa[k] for k in ends], dtype=torch.float32).log().neg()
            to = t[1] if last > first + 1 else t[0] + 0.5 * (t[1] - t[0])
            plan.memo[first, last] = float(t[0].neg().exp()), float(to.neg().exp())
        return plan.memo[first, last]
