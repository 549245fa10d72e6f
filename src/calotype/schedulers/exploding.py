"""Schedulers whose samples are x0 + κ·ε along the levels of a noise table: Euler, Heun, and their relatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.schedulers import grid
from calotype.schedulers.checks import conversion
from calotype.schedulers.coordinates import VARIANCE_EXPLODING
from calotype.schedulers.grid import Grid
from calotype.schedulers.noise import sigma_to_t
from calotype.schedulers.options import Numbers
from calotype.schedulers.prediction import Linear, clean
from calotype.schedulers.prediction import noise as eps
from calotype.schedulers.sigmas import SigmaScheduler
from calotype.schedulers.table import Tabled


class ExplodingScheduler(Tabled, SigmaScheduler):
    """Base of the methods whose samples are x0 + κ·ε (Euler, Heun, …)."""

    _coordinates = VARIANCE_EXPLODING

    def _begin_training_grid(self, dtype: torch.dtype) -> None:
        """Every training step and its level: what stands there before a number of steps is chosen."""
        kappa = self._table.kappa[::-1]
        steps = Grid(np.arange(len(kappa))[::-1], np.append(kappa, 0.0))
        self._begin_grid(steps, None, None, dtype)

    def _ladder(
        self,
        steps: int,
        timesteps: Numbers = None,
        total: int | None = None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Training steps and κ of a run: spaced over the table (of which ``total`` steps count), then converted.

        The final level, zero or the table's lowest, is appended to κ; the steps are rounded to ``dtype``.
        """
        config, kappa = self.config, self._table.kappa
        if timesteps is not None:
            t = np.asarray(timesteps, dtype=np.float64)
        else:
            total = config.num_train_timesteps if total is None else total
            t = grid.spaced(config.timestep_spacing, steps, total, config.steps_offset)
            t = t.astype(dtype).astype(np.float64)
        if config.get("interpolation_type", "linear") == "linear":
            levels = np.interp(t, np.arange(len(kappa)), kappa)
        else:
            levels = grid.exponential(float(kappa[0]), float(kappa[-1]), steps + 1)
        kind = conversion(config)
        if kind:
            ends = config.get("sigma_min"), config.get("sigma_max")
            low, high = (levels[at] if end is None else end for at, end in zip((-1, 0), ends, strict=True))
            levels = grid.converted(kind, low, high, steps)
            t = sigma_to_t(levels, self._table.log_kappa)
        final = kappa[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0
        return t, np.append(levels, final)

    @property
    def init_noise_sigma(self) -> Tensor:
        """What standard normal noise is multiplied with to become the first sample."""
        largest = self.sigmas.max()
        if self.config.timestep_spacing in ("linspace", "trailing"):
            return largest
        return (largest**2 + 1) ** 0.5

    def _clean(self, kind: str, kappa: float) -> Linear:
        """x̂0 as a line in the (exploding) sample and the network's output."""
        level = self._coordinates.preserving(kappa)
        along, across = clean(kind, *level).weights
        return Linear(along * level.alpha, across)

    def _slope(self, kind: str, kappa: float) -> Linear:
        """dx/dκ = ε̂ as a line in the (exploding) sample and the network's output."""
        level = self._coordinates.preserving(kappa)
        along, across = eps(kind, *level).weights
        return Linear(along * level.alpha, across)
