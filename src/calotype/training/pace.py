"""How long a training runs and how its learning rate goes: by steps, by minutes, or whichever ends first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from calotype.core.errors import InputError


@dataclass(frozen=True)
class Pace:
    """The end of a run (``steps``, ``minutes`` or both), the peak learning rate and its warm-up in steps."""

    learning_rate: float
    steps: int | None = None
    minutes: float | None = None
    warmup: int = 500
    final_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise InputError("A training needs an end: give a number of steps, of minutes, or both.")
        for name in ("learning_rate", "steps", "minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"The {name.replace('_', ' ')} of a training must be positive, not {value}.")

    def progress(self, step: int, seconds: float) -> float:
        """The part of the run that is done, in [0, 1], after ``step`` steps and ``seconds`` seconds."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes is not None else 0.0
        return min(1.0, max(by_steps, by_time))

    def rate(self, step: int, seconds: float) -> float:
        """Learning rate of a step: a linear rise, then half a cosine down to ``final_fraction`` of the peak."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress(step, seconds)))
        return self.learning_rate * rise * (self.final_fraction + (1 - self.final_fraction) * cosine)
