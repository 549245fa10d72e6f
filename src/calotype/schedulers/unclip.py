"""unCLIP: the chain of DDPM with a cosine schedule (Ramesh et al., arXiv:2204.06125; Karlo, Kandinsky)."""

from __future__ import annotations

import numpy as np
import torch

from calotype.core.random import Generators
from calotype.schedulers.checks import one_of, step_count
from calotype.schedulers.noise import NoiseTable, make_betas
from calotype.schedulers.outputs import PredictionSchedulerOutput as UnCLIPSchedulerOutput
from calotype.schedulers.posterior import PosteriorScheduler


class UnCLIPScheduler(PosteriorScheduler):
    """As DDPM, but steps are even between both ends of the chain and the caller may say which step follows."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        variance_type: str = "fixed_small_log",
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        prediction_type: str = "epsilon",
        beta_schedule: str = "squaredcos_cap_v2",
    ) -> None:
        one_of("beta_schedule", beta_schedule, ("squaredcos_cap_v2",))
        one_of("variance_type", variance_type, ("fixed_small_log", "learned_range"))
        self._check(("epsilon", "sample"))
        self.betas = make_betas(beta_schedule, 0.0, 0.0, num_train_timesteps)
        self.alphas = 1.0 - self.betas
        self._table = NoiseTable(torch.cumprod(self.alphas, dim=0))
        self.variance_type = variance_type

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps, the last trained and the first among them."""
        total = self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        spaced = np.arange(steps) * ((total - 1) / (steps - 1)) if steps > 1 else np.array([total - 1.0])
        self._begin_table(spaced.round()[::-1], device, steps)

    def _beta(self, t: int, previous: int) -> float:
        return float(self.betas[t]) if previous == t - 1 else self._table.beta(t, previous)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        prev_timestep: int | torch.Tensor | str | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> UnCLIPSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample at ``prev_timestep`` (default: the training step before); draws noise except at step 0.

        ``prev_timestep="next"`` is the timestep that follows in the run.
        """
        plan = self._run.plan
        t = int(plan.value(timestep))
        if prev_timestep == "next":
            following = plan.index(timestep) + 1
            prev_timestep = int(plan.t[following]) if following < len(plan.t) else None
        previous = t - 1 if prev_timestep is None else int(plan.value(prev_timestep))
        result = self._drawn(model_output, t, previous, sample, generator)
        return UnCLIPSchedulerOutput(*result) if return_dict else result
