"""DPM-Solver-2 in κ: half an Euler step in ln κ, then a whole step with the slope found there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.schedulers.checks import conversion, step_count
from calotype.schedulers.outputs import PredictionSchedulerOutput as KDPM2DiscreteSchedulerOutput
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from calotype.schedulers.two_stage import MidpointScheduler


class KDPM2DiscreteScheduler(MidpointScheduler):
    """Midpoint √(κ·κ'); x' = x + (κ' − κ)·slope at the midpoint (Karras et al., arXiv:2206.00364)."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        self._check()
        conversion(self.config)
        self._make_table()

    def _begin_initial(self) -> None:
        self.set_timesteps(self.config.num_train_timesteps)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Begin a run of so many steps; ``timesteps`` then has two entries a step, one for the last."""
        steps = step_count(num_inference_steps)
        t, kappa, dtype = self._ends(steps, num_train_timesteps)
        self._begin_stages(
            t, kappa, np.sqrt(kappa[:-2].astype(np.float64) * kappa[1:-1]), device, dtype, finals=3
        )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> KDPM2DiscreteSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample at the midpoint after a step's first evaluation, at its end after the second."""
        run, i = self._locate(timestep)
        prev_sample, x0 = self._advance(run, i, sample, model_output, run.plan.kappa[i + 1])
        run.index = i + 1
        return KDPM2DiscreteSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
