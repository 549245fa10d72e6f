"""Implicit sampling: the transfer of family A over the training steps (Song et al., arXiv:2010.02502)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import step_count
from calotype.schedulers.grid import spaced
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from calotype.schedulers.table import TableScheduler
from calotype.schedulers.transfer import fresh_noise, transfer


class ImplicitScheduler(TableScheduler):
    """Base of DDIM and its form for parallel sampling: the same configuration, schedule and step."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._check()
        self._make_table()
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps."""
        config, total = self.config, self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        grid = spaced(config.timestep_spacing, steps, total, config.steps_offset)
        self._begin_table(grid.round(), device, steps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> PredictionSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on. ``use_clipped_model_output`` recomputes ε̂ from the clipped x̂0. With ``eta`` > 0
        noise is drawn, or ``variance_noise`` taken."""
        plan = self._running().plan
        t = int(plan.value(timestep))
        if (t, eta) not in plan.memo:
            plan.memo[t, eta] = self._coefficients(t, eta)
        to_clean, to_noise, from_clean, (toward, direction), fresh = plan.memo[t, eta]

        x0 = self._limits.apply(to_clean.of(sample, model_output))
        line, other = (from_clean, x0) if use_clipped_model_output else (to_noise, model_output)
        along, across = line.weights
        terms = [(toward, x0), (direction * along, sample), (direction * across, other)]
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise InputError("Give either a generator or variance_noise, not both.")
            if variance_noise is None:
                variance_noise = randn_tensor(
                    model_output.shape, generator, model_output.device, model_output.dtype
                )
            terms.append((fresh, variance_noise))
        prev_sample = affine(*terms)
        return PredictionSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)

    def _coefficients(
        self, t: int, eta: float
    ) -> tuple[prediction.Linear, prediction.Linear, prediction.Linear, tuple[float, float], float]:
        config = self.config
        jump = config.num_train_timesteps // (self.num_inference_steps or 1)
        s, to = self._level(t), self._level(t - jump, float(self.final_alpha_cumprod))
        fresh = fresh_noise(s, to, eta)
        return (
            prediction.clean(config.prediction_type, *s),
            prediction.noise(config.prediction_type, *s),
            prediction.noise_from_clean(*s),
            transfer(to, fresh),
            fresh,
        )
