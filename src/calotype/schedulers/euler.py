"""Euler's method on the probability-flow ODE in κ, with churn (Karras et al., arXiv:2206.00364, algorithm 2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import grid, prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import conversion, exactly_one, one_of, refuse_timesteps, step_count
from calotype.schedulers.exploding import ExplodingScheduler
from calotype.schedulers.noise import sigma_to_t
from calotype.schedulers.outputs import PredictionSchedulerOutput as EulerDiscreteSchedulerOutput
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY

logger = logging.getLogger(__name__)


class EulerDiscreteScheduler(ExplodingScheduler):
    """x' = x̂0 + (κ'/κ̂)·(x − x̂0)."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        self._check((*prediction.PREDICTION_TYPES, "original_sample"))
        one_of("interpolation_type", interpolation_type, ("linear", "log_linear"))
        one_of("timestep_type", timestep_type, ("discrete", "continuous"))
        one_of("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        conversion(self.config)
        self._make_table(zero_snr_floor=True)

    def _begin_initial(self) -> None:
        self._begin_training_grid(torch.float32)
        if self._continuous:
            self.timesteps = 0.25 * self.sigmas[:-1].log()

    @property
    def _continuous(self) -> bool:
        return self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Begin a run of so many steps, or at these training steps, or over these noise levels (the last included)."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if sigmas is not None:
            levels = np.asarray(sigmas, dtype=np.float32)
            steps = step_count(len(levels) - 1)
            t = sigma_to_t(levels[:-1], self._table.log_kappa)
        else:
            if timesteps is not None:
                refuse_timesteps(self.config)
                if self._continuous:
                    raise InputError(
                        "timesteps cannot be given with timestep_type='continuous': give sigmas."
                    )
            steps = step_count(num_inference_steps if timesteps is None else len(timesteps))
            t, levels = self._ladder(steps, timesteps)
        t = t.astype(np.float32)
        if self._continuous:
            t = 0.25 * np.log(levels[:steps])
        self._begin_grid(grid.Grid(t, levels), device, steps, torch.float32)

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
    ) -> EulerDiscreteSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on. With ``s_churn`` noise is added first where κ is in [``s_tmin``, ``s_tmax``]."""
        self._refuse_index(timestep)
        run, i = self._locate(timestep)
        self._warn_unscaled(run)
        kappa, following = run.plan.kappa[i], run.plan.kappa[i + 1]
        churn = 0.0
        if s_churn > 0 and s_tmin <= kappa <= s_tmax:
            churn = min(s_churn / (len(run.plan.kappa) - 1), math.sqrt(2) - 1)
        sample = sample.to(torch.float32)
        if churn > 0:
            raised = kappa * (1 + churn)
            z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
            sample = affine((1.0, sample), (s_noise * math.sqrt(raised**2 - kappa**2), z))
            kappa, to_clean, step = raised, *self._coefficients(kappa, raised, following)
        else:
            if i not in run.plan.memo:
                run.plan.memo[i] = self._coefficients(kappa, kappa, following)
            to_clean, step = run.plan.memo[i]
        x0 = to_clean.of(sample, model_output)
        prev_sample = step.of(sample, model_output).to(model_output.dtype)
        run.index = i + 1
        return EulerDiscreteSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)

    def _coefficients(
        self, kappa: float, raised: float, following: float
    ) -> tuple[prediction.Linear, prediction.Linear]:
        """The lines of x̂0 and x' in the sample and the output; only ε-prediction follows a churned level."""
        kind = self.config.prediction_type
        to_clean = self._clean(kind, raised if kind == "epsilon" else kappa)
        kept = following / raised
        return to_clean, prediction.Linear(kept + (1 - kept) * to_clean.x, (1 - kept) * to_clean.m)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """α·ε − σ·x0 at the levels of ``timesteps``, the target of v-prediction."""
        self._refuse_index(timesteps)
        levels = [self._coordinates.preserving(kappa) for kappa in self._run.plan.kappa]
        alpha, sigma = self._weights(levels, [self._run.plan.index(t) for t in timesteps], sample)
        return alpha * noise - sigma * sample
