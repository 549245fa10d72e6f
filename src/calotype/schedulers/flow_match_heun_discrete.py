"""Heun's method on a rectified flow: Karras et al., arXiv:2206.00364, algorithm 2, in σ = t."""

from __future__ import annotations

import math

import numpy as np
import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import step_count
from calotype.schedulers.flow import FlowScheduler
from calotype.schedulers.grid import shifted
from calotype.schedulers.outputs import SchedulerOutput as FlowMatchHeunDiscreteSchedulerOutput


class FlowMatchHeunDiscreteScheduler(FlowScheduler):
    """Two evaluations a step, at both its ends, one for the last; x' is made with the mean of the slopes."""

    order = 2

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0) -> None:
        self._prepare()

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps; ``timesteps`` has two entries for each but the last."""
        steps = step_count(num_inference_steps)
        levels = shifted(self._spaced_levels(steps), self.shift).astype(np.float32)
        levels = np.append(levels, np.float32(0))[np.repeat(np.arange(steps + 1), 2)[1:-1]]
        self._begin_flow(levels[:-1], levels[:-1] * self.config.num_train_timesteps, device, steps)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next evaluation begins a step."""
        return self._run.stage is None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> FlowMatchHeunDiscreteSchedulerOutput | tuple[torch.Tensor]:
        """The sample at the end of the step: provisional after its first evaluation, corrected after the second.

        With ``s_churn`` noise is added first where a step begins with σ in [``s_tmin``, ``s_tmax``]; as much is
        drawn, and left unused, at its second evaluation.
        """
        self._refuse_index(timestep)
        run, i = self._locate(timestep)
        kappa = run.plan.kappa
        sigma = kappa[i] if run.stage is None else kappa[i - 1]  # that the step begins at
        churn, z = 0.0, None
        if s_churn > 0 and s_tmin <= sigma <= s_tmax:
            churn = min(s_churn / (len(kappa) - 1), math.sqrt(2) - 1)
            z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
        sample = sample.to(torch.float32)
        if run.stage is None:
            raised = sigma * (1 + churn)
            if z is not None:
                sample = affine((1.0, sample), (s_noise * math.sqrt(raised**2 - sigma**2), z))
            slope, step = model_output * (sigma / raised), kappa[i + 1] - raised
            run.stage = sample, slope, step
            prev_sample = affine((1.0, sample), (step, slope))
        else:
            start, first, step = run.stage
            run.stage = None
            prev_sample = affine((1.0, start), (step / 2, first), (step / 2, model_output))
        run.index = i + 1
        prev_sample = prev_sample.to(model_output.dtype)
        return FlowMatchHeunDiscreteSchedulerOutput(prev_sample) if return_dict else (prev_sample,)
