"""Schedulers over the noise table of a discrete-time model, ᾱ_t of its training steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from calotype.core.config import ConfigMixin, init_parameters
from calotype.core.errors import InputError
from calotype.schedulers import noise
from calotype.schedulers.checks import one_of
from calotype.schedulers.grid import SPACINGS
from calotype.schedulers.noise import NoiseTable
from calotype.schedulers.prediction import PREDICTION_TYPES, Limits
from calotype.schedulers.run import Plan
from calotype.schedulers.scheduler import SchedulerMixin
from calotype.schedulers.transfer import Level, level_of_alpha_bar


class Tabled(ConfigMixin):
    """A scheduler over a table ᾱ of training steps, which is public and may be replaced (``alphas_cumprod``)."""

    betas: torch.Tensor
    alphas: torch.Tensor
    _table: NoiseTable

    def _check(self, predictions: Sequence[str] = PREDICTION_TYPES) -> None:
        """Refuse values of the common options that no scheduler, or not this one, knows."""
        config = self.config
        one_of("prediction_type", config.prediction_type, predictions)
        if "timestep_spacing" in config:
            one_of("timestep_spacing", config.timestep_spacing, SPACINGS)

    @cached_property
    def _limits(self) -> Limits:
        """What the configuration wants done to x̂0."""
        config = self.config
        if config.get("thresholding"):
            return Limits(ratio=config.dynamic_thresholding_ratio, largest=config.sample_max_value)
        # the entry may have come along from another scheduler's configuration
        clips = config.get("clip_sample") and "clip_sample" in init_parameters(type(self))
        return Limits(clip=config.get("clip_sample_range", 1.0)) if clips else Limits()

    def _make_table(self, zero_snr_floor: bool = False) -> None:
        """The noise table that the configuration describes. ``zero_snr_floor`` keeps ᾱ_T at 2⁻²⁴ where κ is needed."""
        config = self.config
        one_of("beta_schedule", config.beta_schedule, noise.BETA_SCHEDULES)
        betas = noise.make_betas(
            config.beta_schedule,
            config.beta_start,
            config.beta_end,
            config.num_train_timesteps,
            config.trained_betas,
        )
        zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        self.betas = noise.zero_terminal_snr(betas) if zero_snr else betas
        self.alphas = 1.0 - self.betas
        bar = torch.cumprod(self.alphas, dim=0)
        if zero_snr and zero_snr_floor:
            bar[-1] = 2.0**-24
        self._table = NoiseTable(bar)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ_t of every training step."""
        return self._table.alphas_cumprod

    @alphas_cumprod.setter
    def alphas_cumprod(self, value: torch.Tensor) -> None:
        self._table = NoiseTable(value)


class TableScheduler(Tabled, SchedulerMixin):
    """Base of the methods whose levels are those of the training steps themselves (DDPM, DDIM, PNDM, …)."""

    init_noise_sigma: float = 1.0

    def scale_model_input(
        self, sample: torch.Tensor, timestep: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The network's input: the sample itself."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """α_t·x0 + σ_t·ε at the training steps ``timesteps`` (integers, one an item)."""
        alpha, sigma = self._table.alpha_sigma(original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """α_t·ε − σ_t·x0, the target of v-prediction."""
        alpha, sigma = self._table.alpha_sigma(sample, timesteps)
        return alpha * noise - sigma * sample

    def _level(self, t: int, final: float = 1.0) -> Level:
        """The level of a training step; before the first step it is that of ᾱ = ``final``."""
        levels = self._table.levels
        if t >= len(levels):
            raise InputError(
                f"timestep {t} is past the last of the {len(levels)} training steps, {len(levels) - 1}."
            )
        return levels[t] if t >= 0 else level_of_alpha_bar(final)

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

    def _given_timesteps(self, timesteps: Sequence[int]) -> np.ndarray:
        """Training steps that the caller chose; raises ``InputError`` unless they descend within the table."""
        total = self.config.num_train_timesteps
        given = np.asarray(timesteps, dtype=np.int64)
        if len(given) == 0 or given[0] >= total or np.any(np.diff(given) >= 0) or given[-1] < 0:
            raise InputError(
                f"timesteps must descend, from below {total} (num_train_timesteps) to 0 at the lowest; "
                f"got {list(timesteps)}."
            )
        return given

    def _begin_initial(self) -> None:
        self._begin_table(np.arange(self.config.num_train_timesteps)[::-1], None, None)

    def _begin_table(self, timesteps: np.ndarray, device: Any, count: int | None) -> None:
        """Begin a run over integer training steps."""
        timesteps = timesteps.astype(np.int64)
        self._start(Plan(torch.from_numpy(timesteps).to(device), count=count, t=tuple(timesteps.tolist())))
