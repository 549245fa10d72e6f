"""Linear multistep in κ: the slopes of the last steps, interpolated by a polynomial and integrated exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, step_count
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.exponential import interpolation_weights
from calotype.schedulers.grid import Grid
from calotype.schedulers.outputs import PredictionSchedulerOutput as LMSDiscreteSchedulerOutput
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY


class LMSDiscreteScheduler(ExplodingScheduler):
    """x' = x + Σ d_j·∫ℓ_j(κ) dκ with the Lagrange basis ℓ_j on the last levels: Adams-Bashforth on uneven steps."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
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

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps."""
        steps = step_count(num_inference_steps)
        self._begin_grid(Grid(*self._ladder(steps)), device, steps, torch.float32)

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """∫ℓ_j dκ over step ``t`` for the ``current_order``-th newest of ``order`` slopes."""
        return self._weights_of(t, order)[current_order]

    def _weights_of(self, i: int, order: int) -> list[float]:
        plan = self._run.plan
        if (i, order) not in plan.memo:
            step = plan.kappa[i + 1] - plan.kappa[i]
            nodes = [(plan.kappa[i - j] - plan.kappa[i]) / step for j in range(order)]
            plan.memo[i, order] = interpolation_weights(nodes, [step / (k + 1) for k in range(order)])
        return plan.memo[i, order]

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> LMSDiscreteSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on, with at most ``order`` slopes."""
        run, i = self._locate(timestep)
        self._warn_unscaled(run)
        kappa = run.plan.kappa[i]
        x0 = self._clean(self.config.prediction_type, kappa).of(sample, model_output)
        slope = self._slope(self.config.prediction_type, kappa).of(sample, model_output)
        run.history = (slope, *run.history[: order - 1])
        weights = self._weights_of(i, len(run.history))
        prev_sample = affine((1.0, sample), *zip(weights, run.history, strict=True))
        run.index = i + 1
        return LMSDiscreteSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
