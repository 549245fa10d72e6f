"""DPM-Solver-2 with ancestral noise: the step of KDPM2 to κ_down, then noise of κ_up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, step_count
from calotype.schedulers.outputs import PredictionSchedulerOutput as KDPM2AncestralDiscreteSchedulerOutput
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from calotype.schedulers.transfer import Level, fresh_noise, transfer
from calotype.schedulers.two_stage import MidpointScheduler


class KDPM2AncestralDiscreteScheduler(MidpointScheduler):
    """As KDPM2 with κ_down in the place of κ'; since κ_down = κ'²/κ, its midpoint √(κ·κ_down) is κ' itself."""

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
        self._begin_stages(t, kappa, kappa[1:-1].astype(np.float64), device, dtype, finals=3)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> KDPM2AncestralDiscreteSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample at the midpoint after a step's first evaluation, at its end after the second, with new noise."""
        run, i = self._locate(timestep)
        second = run.stage is not None
        up = down = 0.0
        if second:
            s, t = (Level(1.0, kappa) for kappa in (run.plan.kappa[i - 1], run.plan.kappa[i + 1]))
            up = fresh_noise(s, t, 1.0)
            down = transfer(t, up)[1]
        prev_sample, x0 = self._advance(run, i, sample, model_output, down)
        if second:
            z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
            prev_sample = affine((1.0, prev_sample), (up, z))
        run.index = i + 1
        return KDPM2AncestralDiscreteSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
