"""How far the work is: a bar with the time left on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from calotype.cli.console import redraws


class Reporter(ABC):
    """Told when a picture begins and when a step of it is done; a context manager."""

    @abstractmethod
    def picture(self, number: int) -> None:
        """Picture ``number`` (from 1) begins."""

    @abstractmethod
    def step(self, done: int, steps: int) -> None:
        """``done`` of ``steps`` steps of the present picture are done."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Bar(Reporter):
    """One bar over the steps of all pictures, with the time left."""

    def __init__(self, pictures: int, steps: int, console: Console) -> None:
        self._pictures = pictures
        self._number = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps,"),
            TimeElapsedColumn(),
            TextColumn("passed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(self._description(), total=pictures * steps)

    def _description(self) -> str:
        return f"picture {max(1, self._number)} of {self._pictures}"

    def picture(self, number: int) -> None:
        self._number = number
        self._progress.update(self._task, description=self._description())

    def step(self, done: int, steps: int) -> None:
        self._progress.update(
            self._task, completed=(self._number - 1) * steps + done, total=self._pictures * steps
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Lines(Reporter):
    """A line now and then: the first after ``every`` seconds, then ever more rarely, up to one a minute."""

    def __init__(
        self,
        pictures: int,
        stream: TextIO,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pictures = pictures
        self._stream = stream
        self._every = every
        self._clock = clock
        self._number = 0
        self._start = self._said = clock()

    def picture(self, number: int) -> None:
        self._number = number

    def step(self, done: int, steps: int) -> None:
        now = self._clock()
        if now - self._said < self._every:
            return
        self._said = now
        self._every = min(2 * self._every, 60.0)
        finished = (self._number - 1) * steps + done
        left = (now - self._start) / finished * (self._pictures * steps - finished)
        print(
            f"picture {self._number} of {self._pictures}, step {done} of {steps}, about {duration(left)} left",
            file=self._stream,
            flush=True,
        )

    def __enter__(self) -> Self:
        self._start = self._said = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


def duration(seconds: float) -> str:
    """A length of time as one would say it: ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def reporter(pictures: int, steps: int, console: Console) -> Reporter:
    """A bar if the console can redraw a line, plain lines on standard error otherwise."""
    if redraws(console):
        return Bar(pictures, steps, console)
    return Lines(pictures, sys.stderr)
