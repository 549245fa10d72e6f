"""Schedulers of rectified flows: samples (1 − σ)·x0 + σ·ε along levels that a shift moves towards noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from calotype.core.errors import InputError
from calotype.schedulers import grid
from calotype.schedulers.checks import conversion, one_of, step_count
from calotype.schedulers.coordinates import Flow
from calotype.schedulers.sigmas import SigmaScheduler


class FlowScheduler(SigmaScheduler):
    """Base of the flow-matching methods (Lipman et al., arXiv:2210.02747; Esser et al., arXiv:2403.03206).

    ``sigma_min`` and ``sigma_max`` are the ends of the trained levels, shifted. A run of so many steps is spaced
    between them and shifted once more, as Stable Diffusion 3 was published with: its checkpoints depend on it.
    Levels that are given (``sigmas=np.linspace(1, 1 / n, n)``, as Flux does) are shifted once.
    """

    _coordinates = Flow()
    init_noise_sigma: float = 1.0

    def _prepare(self) -> None:
        """Refuse options that exclude each other; the trained levels and their ends."""
        config = self.config
        conversion(config)
        one_of("time_shift_type", config.get("time_shift_type", "exponential"), ("exponential", "linear"))
        self._shift = config.shift
        total = config.num_train_timesteps
        levels = np.linspace(1, total, total, dtype=np.float32)[::-1] / np.float32(total)
        if not config.get("use_dynamic_shifting"):
            levels = grid.shifted(levels, config.shift)
        self._trained = levels.astype(np.float32)
        self.sigma_min, self.sigma_max = float(self._trained[-1]), float(self._trained[0])

    def _begin_initial(self) -> None:
        self._begin_flow(
            self._trained, self._trained * np.float32(len(self._trained)), None, None, final=None
        )

    def _begin_flow(
        self, levels: np.ndarray, t: np.ndarray, device: Any, count: int | None, final: float | None = 0.0
    ) -> None:
        """Begin a run along the levels, with a last one after them."""
        levels = levels if final is None else np.append(levels, final)
        self._begin_grid(grid.Grid(t, levels), device, count, torch.float32)

    @property
    def shift(self) -> float:
        """How far levels are moved towards noise: s·σ/(1 + (s − 1)·σ)."""
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Another shift for the runs to come; the ends of the trained levels stay."""
        self._shift = shift

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """m/(m + (1/t − 1)^σ) with m = e^μ, or μ itself where ``time_shift_type`` is linear."""
        strength = np.exp(mu) if self.config.time_shift_type == "exponential" else mu
        return strength / (strength + (1 / t - 1) ** sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """Levels stretched away from 1 so that the last is ``shift_terminal``; the level 1 alone stays."""
        if t[-1] == 1:
            return t
        return 1 - (1 - t) * (1 - self.config.shift_terminal) / (1 - t[-1])

    def _spaced_levels(self, steps: int) -> np.ndarray:
        """Levels evenly spaced between the ends of the trained ones."""
        total = self.config.num_train_timesteps
        return np.linspace(self.sigma_max * total, self.sigma_min * total, steps) / total

    def _begin_schedule(
        self,
        num_inference_steps: int | None,
        device: Any,
        sigmas: Sequence[float] | None,
        mu: float | None,
        timesteps: Sequence[float] | None,
    ) -> None:
        config = self.config
        if config.use_dynamic_shifting and mu is None:
            raise InputError("use_dynamic_shifting=True needs mu, the shift for this size of picture.")
        given = {"sigmas": sigmas, "timesteps": timesteps}
        counts = {name: len(values) for name, values in given.items() if values is not None}
        if num_inference_steps is not None or not counts:
            counts["num_inference_steps"] = step_count(num_inference_steps)
        if len(set(counts.values())) > 1:
            raise InputError(
                f"The numbers of steps differ: {', '.join(f'{k}: {v}' for k, v in counts.items())}."
            )
        steps = step_count(next(iter(counts.values())))

        t = None if timesteps is None else np.asarray(timesteps, dtype=np.float32)
        if sigmas is not None:
            levels = np.asarray(sigmas, dtype=np.float32)
        else:
            levels = self._spaced_levels(steps) if t is None else t / config.num_train_timesteps
        if config.use_dynamic_shifting and mu is not None:
            levels = self.time_shift(mu, 1.0, levels)
        else:
            levels = grid.shifted(levels, self.shift)
        if config.shift_terminal:
            levels = self.stretch_shift_to_terminal(levels)
        kind = conversion(config)
        if kind:
            low, high = (config.get(name) for name in ("sigma_min", "sigma_max"))
            low, high = levels[-1] if low is None else low, levels[0] if high is None else high
            levels = grid.converted(kind, float(low), float(high), steps)
        levels = levels.astype(np.float32)
        final = 0.0
        if config.invert_sigmas:
            levels, final, t = 1 - levels, 1.0, None
        self._begin_flow(
            levels, levels * config.num_train_timesteps if t is None else t, device, steps, final
        )

    def scale_noise(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(1 − σ)·sample + σ·noise at the levels of ``timestep`` (elements of the schedule, one an item)."""
        if noise is None:
            raise InputError("scale_noise needs the noise to mix in.")
        return self.add_noise(sample, noise, torch.as_tensor(timestep).reshape(-1))
