"""Schedulers that walk along levels κ = σ/α of a noise table, with samples x0 + κ·ε or α·x0 + σ·ε."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.schedulers import grid, levels
from calotype.schedulers.affine import Value
from calotype.schedulers.levels import Coordinates, Linear, Lines, clean, lines, noise
from calotype.schedulers.noise import sigma_to_t
from calotype.schedulers.options import Device, Numbers, conversion, steps_or_timesteps
from calotype.schedulers.sigmas import SigmaScheduler
from calotype.schedulers.stepping import Step, once
from calotype.schedulers.table import Tabled


class LadderScheduler(Tabled, SigmaScheduler):
    """Base of both: levels that are spaced over the table, or converted to another spacing."""

    def _converted(
        self, kind: str, steps: int, lowest: float, highest: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Training steps and levels between two, or between those of the configuration."""
        low, high = (self.config.get(name) for name in ("sigma_min", "sigma_max"))
        low, high = lowest if low is None else low, highest if high is None else high
        kappa = grid.converted(kind, float(low), float(high), steps)
        return sigma_to_t(kappa, self._table.log_kappa), kappa

    def _of_steps(self, t: np.ndarray) -> np.ndarray:
        """κ at training steps, fractional ones between those of their neighbours."""
        return np.interp(t, np.arange(len(self._table.kappa)), self._table.kappa)


class ExplodingScheduler(LadderScheduler):
    """Base of the methods whose samples are x0 + κ·ε (Euler, Heun, …)."""

    _coordinates = Coordinates(levels.exploding, 1.0)

    def _begin_every(self, dtype: torch.dtype) -> None:
        """Begin at every training step: what stands there before a number of steps is chosen."""
        kappa = self._table.kappa[::-1]
        self._begin_levels(np.arange(len(kappa))[::-1], np.append(kappa, 0.0), dtype=dtype)

    def _ladder(
        self,
        num_inference_steps: int | None,
        timesteps: Numbers = None,
        total: int | None = None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Training steps and κ of a run: spaced over the table (of which ``total`` steps count), then converted.

        The final level, zero or the table's lowest, is appended to κ; the steps are rounded to ``dtype``.
        """
        config, kappa = self.config, self._table.kappa
        steps = steps_or_timesteps(config, num_inference_steps, timesteps)
        if timesteps is not None:
            t = np.asarray(timesteps, dtype=np.float64)
        else:
            total = config.num_train_timesteps if total is None else total
            t = grid.spaced(config.timestep_spacing, steps, total, config.steps_offset)
            t = t.astype(dtype).astype(np.float64)
        ladder = self._of_steps(t)
        if config.get("interpolation_type", "linear") == "log_linear":
            ladder = grid.converted("exponential", float(kappa[0]), float(kappa[-1]), steps + 1)
        kind = conversion(config)
        if kind:
            t, ladder = self._converted(kind, steps, ladder[-1], ladder[0])
        final = kappa[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0
        return t, np.append(ladder, final)

    def _begin_steps(self, num_inference_steps: int, device: Device = None) -> None:
        """Begin a run of so many steps."""
        t, ladder = self._ladder(num_inference_steps)
        self._begin_levels(t, ladder, device, len(t), torch.float32)

    @property
    def init_noise_sigma(self) -> Tensor:
        """What standard normal noise is multiplied with to become the first sample."""
        largest = self.sigmas.max()
        if self.config.timestep_spacing in ("linspace", "trailing"):
            return largest
        return (largest**2 + 1) ** 0.5

    @once
    def _lines(self, kappa: float) -> tuple[Linear, Linear]:
        """x̂0, and the slope dx/dκ = ε̂, as lines in the (exploding) sample and the network's output."""
        level, kind = levels.preserving(kappa), self.config.prediction_type
        (x, m), (along, across) = clean(kind, *level).weights, noise(kind, *level).weights
        return Linear(x * level.alpha, m), Linear(along * level.alpha, across)


class PreservingScheduler(LadderScheduler):
    """Base of the methods whose samples are α·x0 + σ·ε along a list of κ, or of flow levels (the DPM-Solver family)."""

    init_noise_sigma: float = 1.0
    _ascending: ClassVar[bool] = False
    _unrounded: ClassVar[str] = ""
    """The ``beta_schedule`` under which training steps of karras levels are truncated, as those of others are."""

    @cached_property
    def _coordinates(self) -> Coordinates:  # type: ignore[override]
        return Coordinates(levels.flow if self.config.get("use_flow_sigmas") else levels.preserving)

    def _begin_initial(self) -> None:
        """Every training step and its level: what stands there before a number of steps is chosen."""
        kappa = self._table.kappa
        t = np.arange(len(kappa))[:: 1 if self._ascending else -1]
        self._begin_levels(t, kappa, dtype=torch.float32)

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
        self, steps: int, timesteps: Numbers = None, mu: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Training steps and levels of a run without the final one: converted between the table's ends, or those of
        a flow (shifted by ``flow_shift``, or by exp(``mu``)), or spaced over the table."""
        config, kappa, total = self.config, self._table.kappa, self.config.num_train_timesteps
        if mu is not None and not config.get("use_dynamic_shifting"):
            raise InputError("mu shifts the noise levels only with use_dynamic_shifting=True.")
        kind = conversion(config)
        if config.get("use_lu_lambdas") and kind != "karras":
            kind = "lu"
        if kind:
            ends = self._table.log_kappa if kind == "lu" else kappa
            t, ladder = self._converted(kind, steps, ends[0], ends[-1])
            if not config.get("use_flow_sigmas"):
                rounded = kind in ("karras", "lu") and config.beta_schedule != self._unrounded
                return (t.round() if rounded else t), ladder
            ladder = ladder / (ladder + 1)  # the level of a flow whose σ/α is κ
            return ladder * total, ladder
        if config.get("use_flow_sigmas"):
            if timesteps is not None:
                raise InputError(
                    "timesteps cannot be given with use_flow_sigmas=True: give num_inference_steps."
                )
            shift = config.flow_shift if mu is None else math.exp(mu)
            ladder = grid.shifted(1.0 - np.linspace(1, 1 / total, steps + 1), shift)[:0:-1]
            return ladder * total, ladder
        t = self._spaced_steps(steps) if timesteps is None else np.asarray(timesteps).astype(np.int64)
        return t, self._of_steps(t)

    def _begin_ladder(
        self, t: np.ndarray, ladder: np.ndarray, device: Any, final: float | None = None
    ) -> None:
        """Begin a run along the levels to a final one, which ``final_sigmas_type`` says unless it is given."""
        if final is None:
            final = 0.0 if self.config.final_sigmas_type == "zero" else float(self._table.kappa[0])
        self._begin_levels(t, np.append(ladder, final), device, len(t), torch.int64)

    def _repeated_or_lowest(self, ladder: np.ndarray) -> float:
        """The final level of DEIS and SA-Solver: of converted levels and those of a flow the last once more."""
        if conversion(self.config) or self.config.get("use_flow_sigmas"):
            return float(ladder[-1])
        return float(self._table.kappa[0])

    def _trim(self, at: Step) -> None:
        """Leave out the channels of a learned variance."""
        if self.config.variance_type in ("learned", "learned_range"):
            at.output = at.output[:, : at.sample.shape[1]]

    @once
    def _lines(self, i: int) -> Lines:
        """What the network says at step ``i``."""
        return lines(self.config.prediction_type, *self._run.plan.levels[i])

    def _predict(self, at: Step, data: bool) -> Value:
        """x̂0 (``data``) or ε̂, within the limits that the configuration sets to x̂0."""
        to_clean, to_noise, from_clean = self._lines(at.i)
        if not data and not self._limits.active:
            return to_noise.of(at.sample, at.output)
        x0 = to_clean.of(at.sample, at.output, self._limits)
        return x0 if data else from_clean.of(at.sample, x0)
