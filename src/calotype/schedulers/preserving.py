"""Schedulers whose samples are α·x0 + σ·ε along a list of κ, or of flow levels: the DPM-Solver family."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.schedulers import grid, noise
from calotype.schedulers.affine import Value
from calotype.schedulers.checks import conversion
from calotype.schedulers.coordinates import FLOW, VARIANCE_PRESERVING, Coordinates
from calotype.schedulers.grid import Grid
from calotype.schedulers.options import Numbers
from calotype.schedulers.prediction import clean, noise_from_clean
from calotype.schedulers.prediction import noise as eps
from calotype.schedulers.sigmas import SigmaScheduler
from calotype.schedulers.table import Tabled


class PreservingScheduler(Tabled, SigmaScheduler):
    """Base of the methods whose samples are α·x0 + σ·ε along a list of κ, or of flow levels (the DPM-Solver family)."""

    init_noise_sigma: float = 1.0
    _ascending: ClassVar[bool] = False

    @cached_property
    def _coordinates(self) -> Coordinates:  # type: ignore[override]
        return FLOW if self.config.get("use_flow_sigmas") else VARIANCE_PRESERVING

    def _begin_initial(self) -> None:
        """Every training step and its level: what stands there before a number of steps is chosen."""
        kappa = self._table.kappa
        t = np.arange(len(kappa))[:: 1 if self._ascending else -1]
        self._begin_grid(Grid(t, kappa), None, None, torch.float32)

    @property
    def _usable(self) -> int:
        """How many training steps have a λ that is not below ``lambda_min_clipped``."""
        below = np.searchsorted(-self._table.log_kappa[::-1], self.config.get("lambda_min_clipped", -np.inf))
        return int(self.config.num_train_timesteps - below)

    def _spaced_steps(self, steps: int) -> np.ndarray:
        """Training steps by the family's convention: rounded, with one step more than asked and the last dropped."""
        config, total = self.config, self.config.num_train_timesteps
        spacing, offset = config.get("timestep_spacing", "linspace"), config.get("steps_offset", 0)
        return grid.spaced(spacing, steps, total, offset, last=self._usable, extra=1).round()

    def _ladder(
        self, steps: int, timesteps: Numbers = None, mu: float | None = None, *, rounded: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Training steps and levels of a run without the final one: converted between the table's ends, or those of
        a flow (shifted by ``flow_shift``, or by exp(``mu``)), or spaced over the table. The steps of karras levels are
        ``rounded`` where those of other conversions are truncated."""
        config, table = self.config, self._table
        if mu is not None and not config.get("use_dynamic_shifting"):
            raise InputError("mu shifts the noise levels only with use_dynamic_shifting=True.")
        kind = conversion(config)
        if config.get("use_lu_lambdas") and kind != "karras":
            kind = "lu"
        if kind:
            if kind == "lu":
                levels = grid.lu(float(table.log_kappa[0]), float(table.log_kappa[-1]), steps)
            else:
                ends = config.get("sigma_min"), config.get("sigma_max")
                low, high = (
                    float(table.kappa[at]) if x is None else x for at, x in zip((0, -1), ends, strict=True)
                )
                levels = grid.converted(kind, low, high, steps)
            if config.get("use_flow_sigmas"):  # the level of a flow whose σ/α is κ
                levels = levels / (levels + 1)
                return levels * config.num_train_timesteps, levels
            t = noise.sigma_to_t(levels, table.log_kappa)
            return (t.round() if kind in ("karras", "lu") and rounded else t), levels
        if config.get("use_flow_sigmas"):
            if timesteps is not None:
                raise InputError(
                    "timesteps cannot be given with use_flow_sigmas=True: give num_inference_steps."
                )
            shift = config.flow_shift if mu is None else math.exp(mu)
            levels = grid.shifted(1.0 - np.linspace(1, 1 / config.num_train_timesteps, steps + 1), shift)
            levels = levels[:0:-1]
            return levels * config.num_train_timesteps, levels
        t = self._spaced_steps(steps) if timesteps is None else np.asarray(timesteps).astype(np.int64)
        return t, np.interp(t, np.arange(len(table.kappa)), table.kappa)

    def _begin_to_final(
        self, t: np.ndarray, levels: np.ndarray, device: Any, steps: int, final: float | None = None
    ) -> None:
        """Begin a run along the levels to a final one, which ``final_sigmas_type`` says unless it is given."""
        if final is None:
            final = 0.0 if self.config.final_sigmas_type == "zero" else float(self._table.kappa[0])
        self._begin_grid(Grid(t, np.append(levels, final)), device, steps, torch.int64)

    def _repeated_or_lowest(self, levels: np.ndarray) -> float:
        """The final level of the methods that do not step to zero: the table's lowest, or an idle last step."""
        config = self.config
        repeats = conversion(config) or config.get("use_flow_sigmas")
        return float(levels[-1] if repeats else self._table.kappa[0])

    def _prepare(self) -> None:
        """Make the noise table; raise ``InputError`` for a flow's prediction without a flow's levels."""
        self._make_table()
        if self.config.prediction_type == "flow_prediction" and not self.config.use_flow_sigmas:
            raise InputError(
                "prediction_type='flow_prediction' has a meaning only with use_flow_sigmas=True."
            )

    def _mean(self, output: Tensor, sample: Tensor) -> Tensor:
        """The network's output without the channels of a learned variance."""
        learned = self.config.variance_type in ("learned", "learned_range")
        return output[:, : sample.shape[1]] if learned else output

    def _predict(self, i: int, sample: Tensor, output: Tensor, *, data: bool) -> Value:
        """x̂0 (``data``) or ε̂ at step ``i``, within the limits that the configuration sets to x̂0."""
        memo = self._run.plan.memo
        key = "prediction", i
        if key not in memo:
            level, kind = self._run.plan.levels[i], self.config.prediction_type
            memo[key] = clean(kind, *level), eps(kind, *level), noise_from_clean(*level)
        to_clean, to_noise, from_clean = memo[key]
        if not data and not self._limits.active:
            return to_noise.of(sample, output)
        x0 = to_clean.of(sample, output, self._limits)
        return x0 if data else from_clean.of(sample, x0)
