"""DDPM: ancestral sampling along the trained chain (Ho et al., arXiv:2006.11239; Nichol & Dhariwal 2102.09672)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import exactly_one, one_of, step_count
from calotype.schedulers.grid import spaced
from calotype.schedulers.outputs import PredictionSchedulerOutput as DDPMSchedulerOutput
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from calotype.schedulers.table import TableScheduler
from calotype.schedulers.transfer import posterior

VARIANCE_TYPES = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)


class DDPMScheduler(TableScheduler):
    """x' = posterior mean of (x, x̂0) + ς·z; ``variance_type`` says where ς comes from."""

    _compatibles = SIGNAL_NOISE_FAMILY

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._check()
        one_of("variance_type", variance_type, VARIANCE_TYPES)
        self._make_table()
        self.variance_type = variance_type

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Begin a run of so many steps, or over the descending training steps ``timesteps``."""
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        config, total = self.config, self.config.num_train_timesteps
        if timesteps is not None:
            given = np.asarray(timesteps, dtype=np.int64)
            if len(given) == 0 or given[0] >= total or np.any(np.diff(given) >= 0) or given[-1] < 0:
                raise InputError(
                    f"timesteps must descend, from below {total} (num_train_timesteps) to 0 at the lowest; "
                    f"got {list(timesteps)}."
                )
            self._begin_table(given, device, len(given))
            return
        steps = step_count(num_inference_steps, total)
        grid = spaced(config.timestep_spacing, steps, total, config.steps_offset)
        self._begin_table(grid.round(), device, steps)

    def previous_timestep(self, timestep: Any) -> int:
        """The step that follows ``timestep`` in the run, -1 after the last; one less if no run was begun."""
        plan = self._run.plan
        t = int(plan.value(timestep))
        if plan.count is None:
            return t - 1
        index = plan.position(timestep)
        if index is None:
            index = plan.index(t)
        return int(plan.t[index + 1]) if index + 1 < len(plan.t) else -1

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on, from the network's output at ``timestep``; draws noise except at step 0."""
        memo = self._run.plan.memo
        t, previous = int(self._run.plan.value(timestep)), self.previous_timestep(timestep)
        if (t, previous) not in memo:
            memo[t, previous] = self._coefficients(t, previous)
        to_clean, along, toward, small, large = memo[t, previous]

        learned = None
        if model_output.shape[1] == 2 * sample.shape[1] and self.variance_type in (
            "learned",
            "learned_range",
        ):
            model_output, learned = model_output.split(sample.shape[1], dim=1)
        x0 = self._limits.apply(to_clean.of(sample, model_output))
        if t == 0:
            prev_sample = affine((along, sample), (toward, x0))
        else:
            z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
            deviation = self._deviation(small, large, learned)
            if isinstance(deviation, float):
                prev_sample = affine((along, sample), (toward, x0), (deviation, z))
            else:
                prev_sample = affine((along, sample), (toward, x0)) + deviation * z
        return DDPMSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)

    def _coefficients(self, t: int, previous: int) -> tuple[prediction.Linear, float, float, float, float]:
        """x̂0's line, the posterior's weights of x and x̂0, and the two variances that bound the true one."""
        s, to = self._level(t), self._level(previous)
        beta = self._table.beta(t, previous)
        along, toward, variance = posterior(s, to, beta)
        return prediction.clean(self.config.prediction_type, *s), along, toward, max(variance, 1e-20), beta

    def _deviation(self, small: float, large: float, learned: torch.Tensor | None) -> float | torch.Tensor:
        """ς, by ``variance_type``; a learned range interpolates between the two variances in their logs."""
        kind = self.variance_type
        if kind in ("learned", "learned_range"):
            if learned is None:
                raise InputError(
                    f"variance_type={kind!r} needs a network with twice the sample's channels in its output; it has "
                    f"as many as the sample. Use variance_type='fixed_small'."
                )
            if kind == "learned":
                return learned**0.5
            low, high = math.log(small), math.log(large)
            return torch.exp((learned + 1) * (0.25 * (high - low)) + 0.5 * low)
        return math.sqrt(small if kind.startswith("fixed_small") else large)
