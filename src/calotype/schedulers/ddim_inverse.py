"""DDIM run upwards, from a picture to the noise that it comes from (Song et al., arXiv:2010.02502, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.schedulers import prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import one_of, step_count
from calotype.schedulers.grid import spaced
from calotype.schedulers.outputs import PredictionSchedulerOutput as DDIMSchedulerOutput
from calotype.schedulers.table import TableScheduler
from calotype.schedulers.transfer import transfer


class DDIMInverseScheduler(TableScheduler):
    """x' = α'·x̂0 + σ'·ε̂ with rising noise; the output at ``timestep`` is taken for that of the level before it."""

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
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        **kwargs: Any,
    ) -> None:
        set_alpha_to_one = kwargs.pop("set_alpha_to_zero", set_alpha_to_one)  # its former name
        if kwargs:
            raise InputError(f"DDIMInverseScheduler has no option {' or '.join(map(repr, kwargs))}.")
        self._check()
        one_of("timestep_spacing", timestep_spacing, ("leading", "trailing"))
        self._make_table()
        self.initial_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def _begin_initial(self) -> None:
        self._begin_table(np.arange(self.config.num_train_timesteps), None, None)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a run of so many steps, upwards."""
        config, total = self.config, self.config.num_train_timesteps
        steps = step_count(num_inference_steps, total)
        grid = spaced(config.timestep_spacing, steps, total, config.steps_offset).round()
        self._begin_table(grid[::-1], device, steps)

    def step(
        self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample at ``timestep``, from T//N training steps below it."""
        plan, total = self._running().plan, self.config.num_train_timesteps
        t = int(plan.value(timestep))
        if t not in plan.memo:
            below = min(t - total // (plan.count or 1), total - 1)
            s, kind = self._level(below, float(self.initial_alpha_cumprod)), self.config.prediction_type
            if s.sigma == 0 and kind == "sample":
                raise InputError(
                    "From a clean sample no noise can be told apart by prediction_type='sample': set "
                    "set_alpha_to_one=False."
                )
            weights = transfer(self._level(t), 0.0)
            plan.memo[t] = prediction.clean(kind, *s), prediction.noise(kind, *s).weights, weights
        to_clean, (along, across), (toward, direction) = plan.memo[t]
        x0 = self._limits.apply(to_clean.of(sample, model_output))
        prev_sample = affine((toward, x0), (direction * along, sample), (direction * across, model_output))
        return DDIMSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
