"""How long something takes on a device, and how far results are from right ones."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RATE = 788e12
"""bf16 operations a second that a large matrix product reaches on an H200."""


class Timer:
    """Times in ms on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def settle(self) -> None:
        """Wait until all that was launched has been computed."""
        if self.cuda:
            torch.cuda.synchronize()

    def wall(self, function: Callable[[], Any]) -> float:
        """One call, from when the device is idle until it is again."""
        self.settle()
        start = time.perf_counter()
        function()
        self.settle()
        return (time.perf_counter() - start) * 1e3

    def walls(self, function: Callable[[], Any], seconds: float, least: int, most: int) -> list[float]:
        """Single calls until the time is over, of which there are at least and at most so many."""
        until, times = time.perf_counter() + seconds, list[float]()
        while len(times) < least or (len(times) < most and time.perf_counter() < until):
            times.append(self.wall(function))
        return times

    def steady(self, function: Callable[[], Any], seconds: float = 0.6) -> list[float]:
        """Five times, each the mean of several calls in a row that the host does not wait for."""
        count = max(min(int(seconds * 1e3 / 5 / max(self.wall(function), 0.05)), 40), 1)
        return [self._row(function, count) for _ in range(5)]

    def _row(self, function: Callable[[], Any], count: int) -> float:
        def calls() -> None:
            for _ in range(count):
                function()

        if not self.cuda:
            return self.wall(calls) / count
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / count

    def clear(self) -> None:
        """Give back the device's memory that nothing refers to."""
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()


def error(found: Tensor, right: Tensor) -> float:
    """The relative error in the Euclidean norm."""
    return float((found.double() - right.double()).norm() / right.double().norm())


def operations(function: Callable[[], Any]) -> int:
    """Floating-point operations of a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def middle(times: list[float]) -> float:
    return statistics.median(times)
