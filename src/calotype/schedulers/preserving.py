"""Schedulers whose samples are α·x0 + σ·ε along a list of κ, or of flow levels: the DPM-Solver family."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from calotype.schedulers import grid, noise
from calotype.schedulers.coordinates import Coordinates, Flow, VariancePreserving
from calotype.schedulers.grid import Grid
from calotype.schedulers.prediction import clean, noise_from_clean
from calotype.schedulers.prediction import noise as eps
from calotype.schedulers.sigmas import SigmaScheduler
from calotype.schedulers.table import Tabled


class PreservingScheduler(Tabled, SigmaScheduler):
    """Base of the methods whose samples are α·x0 + σ·ε along a list of κ, or of flow levels (the DPM-Solver family)."""

    init_noise_sigma: float = 1.0

    @cached_property
    def _coordinates(self) -> Coordinates:  # type: ignore[override]
        return Flow() if self.config.get("use_flow_sigmas") else VariancePreserving()

    def _begin_initial(self) -> None:
        kappa = self._table.kappa
        self._begin_grid(Grid(np.arange(len(kappa))[::-1], kappa), None, None, torch.float32)

    def _translate(self, option: str, values: dict[str, str]) -> None:
        """Replace a value of another class's option by what it means here, so that configurations can be exchanged."""
        if self.config[option] in values:
            self.register_to_config(**{option: values[self.config[option]]})

    def _spaced_steps(self, steps: int) -> np.ndarray:
        """Training steps by the family's convention: rounded, with one step more than asked and the last dropped."""
        config, total = self.config, self.config.num_train_timesteps
        with np.errstate(divide="ignore"):
            clipped = np.searchsorted(-self._table.log_kappa[::-1], config.get("lambda_min_clipped", -np.inf))
        spacing, last = config.timestep_spacing, int(total - clipped)
        return grid.spaced(spacing, steps, total, config.steps_offset, last=last, extra=1).round()

    def _steps_of(self, levels: np.ndarray, rounded: bool) -> np.ndarray:
        """The training steps of converted levels; rounded ones unless the schedule is the cosine."""
        t = noise.sigma_to_t(levels, self._table.log_kappa)
        return t.round() if rounded and self.config.beta_schedule != "squaredcos_cap_v2" else t

    def _predict(self, i: int, sample: torch.Tensor, output: torch.Tensor, *, data: bool) -> torch.Tensor:
        """x̂0 (``data``) or ε̂ at step ``i``, within the limits that the configuration sets to x̂0."""
        plan = self._run.plan
        key = "prediction", i
        if key not in plan.memo:
            level, kind = plan.levels[i], self.config.prediction_type
            plan.memo[key] = clean(kind, *level), eps(kind, *level), noise_from_clean(*level)
        to_clean, to_noise, from_clean = plan.memo[key]
        if not data and not self._limits.active:
            return to_noise.of(sample, output)
        x0 = self._limits.apply(to_clean.of(sample, output))
        return x0 if data else from_clean.of(sample, x0)
