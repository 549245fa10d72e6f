"""Schedulers that sample DDPM's posterior: x' = its mean in (x, x̂0) + ς·z (Ho et al., arXiv:2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers import prediction
from calotype.schedulers.affine import affine
from calotype.schedulers.checks import exactly_one, one_of, step_count
from calotype.schedulers.grid import spaced
from calotype.schedulers.outputs import PredictionSchedulerOutput
from calotype.schedulers.scheduler import SIGNAL_NOISE_FAMILY
from calotype.schedulers.table import TableScheduler
from calotype.schedulers.transfer import posterior


class Posterior(NamedTuple):
    """x̂0's line, the mean's weights of x and x̂0, and the two variances that bound the true one."""

    clean: prediction.Linear
    along: float
    toward: float
    small: float
    large: float


class PosteriorScheduler(TableScheduler):
    """Base of the methods that walk along the trained chain; ``variance_type`` says where ς comes from."""

    variance_type: str

    def _coefficients(self, t: int, previous: int) -> Posterior:
        memo = self._run.plan.memo
        if (t, previous) not in memo:
            s, to = self._level(t), self._level(previous)
            beta = self._beta(t, previous)
            along, toward, variance = posterior(s, to, beta)
            clean = prediction.clean(self.config.prediction_type, *s)
            memo[t, previous] = Posterior(clean, along, toward, max(variance, 1e-20), beta)
        return memo[t, previous]

    def _beta(self, t: int, previous: int) -> float:
        """1 − ᾱ_t/ᾱ_previous."""
        return self._table.beta(t, previous)

    def _drawn(
        self, output: torch.Tensor, t: int, previous: int, sample: torch.Tensor, generator: Generators
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sample at ``previous`` and x̂0; noise is drawn except at step 0."""
        to_clean, along, toward, small, large = self._coefficients(t, previous)
        learned = None
        if output.shape[1] == 2 * sample.shape[1] and self.variance_type.startswith("learned"):
            output, learned = output.split(sample.shape[1], dim=1)
        x0 = self._limits.apply(to_clean.of(sample, output))
        if t == 0:
            return affine((along, sample), (toward, x0)), x0
        z = randn_tensor(output.shape, generator, output.device, output.dtype)
        deviation = self._deviation(small, large, learned)
        if isinstance(deviation, float):
            return affine((along, sample), (toward, x0), (deviation, z)), x0
        return affine((along, sample), (toward, x0)) + deviation * z, x0

    def _deviation(self, small: float, large: float, learned: torch.Tensor | None) -> float | torch.Tensor:
        """ς; a learned range interpolates between the two variances in their logs (arXiv:2102.09672, equation 15)."""
        kind = self.variance_type
        if not kind.startswith("learned"):
            return math.sqrt(small if kind.startswith("fixed_small") else large)
        if learned is None:
            raise InputError(
                f"variance_type={kind!r} needs a network whose output has twice the sample's channels; it has "
                f"as many as the sample. Use one of the fixed variance types."
            )
        if kind == "learned":
            return learned**0.5
        low, high = math.log(small), math.log(large)
        return torch.exp((learned + 1) * (0.25 * (high - low)) + 0.5 * low)


class AncestralScheduler(PosteriorScheduler):
    """Base of DDPM and its form for parallel sampling: the same configuration, schedule and step."""

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
        one_of("variance_type", variance_type, prediction.VARIANCE_TYPES)
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
            given = self._given_timesteps(timesteps)
            return self._begin_table(given, device, len(given))
        steps = step_count(num_inference_steps, total)
        grid = spaced(config.timestep_spacing, steps, total, config.steps_offset)
        return self._begin_table(grid.round(), device, steps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> PredictionSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The sample one step on, from the network's output at ``timestep``; draws noise except at step 0."""
        t, previous = int(self._run.plan.value(timestep)), self.previous_timestep(timestep)
        result = self._drawn(model_output, t, previous, sample, generator)
        return PredictionSchedulerOutput(*result) if return_dict else result
