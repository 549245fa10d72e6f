"""Euler's method with churn in EDM's coordinates (Karras et al., arXiv:2206.00364, algorithm 2, uncorrected)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import exactly_one, step_count
from calotype.schedulers.edm import EDMScheduler, quarter_log, ramp
from calotype.schedulers.outputs import PredictionSchedulerOutput as EDMEulerSchedulerOutput


class EDMEulerScheduler(EDMScheduler):
    """x' = x̂0 + (σ'/σ̂)·(x − x̂0)."""

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
    ) -> None:
        self._configure()

    def _time(self, sigma: torch.Tensor) -> torch.Tensor:
        return quarter_log(sigma)

    def _begin_initial(self) -> None:
        levels = self._levels(ramp(self.config.num_train_timesteps + 1, torch.float64))
        self._begin_edm(levels, 0.0, None, None)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: torch.Tensor | Sequence[float] | None = None,
    ) -> None:
        """Begin a run of so many steps, or over the levels ``sigmas`` (without the final one)."""
        exactly_one(num_inference_steps=num_inference_steps, sigmas=sigmas)
        steps = step_count(num_inference_steps if sigmas is None else len(sigmas))
        if sigmas is None:
            levels = self._levels(ramp(steps, torch.float64))
        else:
            levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
        self._begin_edm(levels, self._final(float(levels[-1])), device, steps)

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
        pred_original_sample: torch.Tensor | None = None,
    ) -> EDMEulerSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on; ``pred_original_sample`` replaces the network's x̂0."""
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
            kappa = raised
        x0 = (
            self._clean(kappa).of(sample, model_output)
            if pred_original_sample is None
            else pred_original_sample
        )
        kept = following / kappa
        prev_sample = affine((kept, sample), (1 - kept, x0)).to(model_output.dtype)
        run.index = i + 1
        return EDMEulerSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
