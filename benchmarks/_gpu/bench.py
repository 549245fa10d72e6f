"""What every part of the benchmark is given."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks._gpu.memory import Peak
from benchmarks._gpu.report import Report, Row
from benchmarks._gpu.sizes import Sizes
from benchmarks._gpu.stock import Stock
from benchmarks._gpu.timing import Timer


@dataclass(frozen=True)
class Bench:
    """Models, where they are timed, what is asked for, and when there is no more time."""

    stock: Stock
    timer: Timer
    report: Report
    deadline: float
    tiny: bool = False
    mechanisms: bool = False
    compiled: bool = False
    profile: bool = False

    @property
    def sizes(self) -> Sizes:
        return self.stock.sizes

    @property
    def device(self) -> torch.device:
        return self.timer.device

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.perf_counter()

    def has(self, seconds: float, row: Row, what: str = "") -> bool:
        """Whether there is so much time; if not, the row says so."""
        enough = self.left >= (0 if self.tiny else seconds)
        if not enough:
            self.lacks(row, f"{what}: no time" if what else "no time")
        return enough

    def lacks(self, row: Row, why: str) -> None:
        """Something of a row is not there."""
        row.missing = f"{row.missing}; {why}" if row.missing else why
        self.report.say(f"{row.what:34s} {why}")

    @contextmanager
    def going_on(self, row: Row, what: str) -> Iterator[None]:
        """Within this a failure is noted, and what comes after goes on."""
        try:
            yield
        except Exception as problem:
            self.lacks(row, f"{what} failed: {type(problem).__name__}")
            self.report.fail(f"{row.what}, {what}", traceback.format_exc())
        finally:
            self.timer.clear()

    def peak(self, models: list[nn.Module]) -> Peak:
        """The most memory that these of the models take from now on."""
        return Peak(self.timer, models, [one for one in self.stock.all if one not in models])

    def random(self, *shape: int, generator: Any = None) -> torch.Tensor:
        """Normal random numbers of the models' type."""
        return torch.randn(*shape, device=self.device, generator=generator).to(self.stock.dtype)
