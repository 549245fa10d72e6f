"""The circumstances of a run: device, folders, deadline, and how it speaks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from calotype.core.errors import InputError

STAGE_WEIGHTS = {"vae": 4.0, "tokenizer": 0.1, "text": 1.5, "latents": 2.0, "unet": 12.0, "export": 0.4}
"""The stages in their order, and how the time of a run is shared among those that it has."""


@dataclass(frozen=True)
class Run:
    """``work`` keeps checkpoints and intermediate data, ``out`` receives what is to be kept."""

    device: torch.device
    work: Path
    out: Path
    stages: tuple[str, ...]
    max_minutes: float | None = None
    resume: bool = False
    workers: int = 0
    compile: bool = False
    init: Path | None = None
    """a checkpoint whose weights and tokenizer are the beginning"""
    weights: Mapping[str, float] = field(default_factory=lambda: STAGE_WEIGHTS)
    reserve: float = 8.0
    """seconds kept for writing files"""
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise InputError(f"The minutes of a run must be positive, not {self.max_minutes}.")

    @property
    def seconds_left(self) -> float | None:
        """Until the run as a whole should be over; ``None`` without a limit."""
        if self.max_minutes is None:
            return None
        return 60 * self.max_minutes - (time.monotonic() - self.started)

    def minutes_for(self, stage: str) -> float | None:
        """Minutes for a stage: its share, by the weights, of what is left for it and the stages after it."""
        left = self.seconds_left
        if left is None:
            return None
        order = list(self.weights)
        following = [name for name in self.stages if order.index(name) >= order.index(stage)]
        share = self.weights[stage] / sum(self.weights[name] for name in following)
        return max(0.05, share * (left - self.reserve) / 60)

    def check_length(self, stage: str, steps: int | None) -> None:
        """Raises ``InputError`` for a stage that neither its number of steps nor the run's minutes would end."""
        if stage in self.stages and steps is None and self.max_minutes is None:
            raise InputError("This preset has no number of steps: say how long to train with --max-minutes.")

    def say(self, text: str) -> None:
        """A line of progress, with the run's clock, shown at once."""
        print(f"[{time.monotonic() - self.started:7.1f} s] {text}", flush=True)
