"""Models that are called in a row and do not need each other: where they can, they compute side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Lanes:
    """The work that is on its way beside the caller's, and what it reads and writes, until all have met."""

    def __init__(self) -> None:
        self.ends: list[Callable[[], None]] = []
        self.kept: list[Any] = []

    @contextmanager
    def lane(self, number: int) -> Iterator[None]:
        """Within this, calls may go by the lane of this number; 0 is the caller's own.

        What such a call gives must not be computed with before :func:`side_by_side` ends.
        """
        token = _LANE.set((number, self))
        try:
            yield
        finally:
            _LANE.reset(token)

    def meet(self) -> None:
        """Let all work that comes from here on wait for what is in the lanes."""
        for end in self.ends:
            end()
        self.ends.clear()
        self.kept.clear()


_LANE: ContextVar[tuple[int, Lanes] | None] = ContextVar("calotype_lane", default=None)


@contextmanager
def side_by_side() -> Iterator[Lanes]:
    """Lanes, which meet at the end."""
    lanes = Lanes()
    try:
        yield lanes
    finally:
        lanes.meet()


def lane() -> tuple[int, Lanes] | None:
    """The lane that a call may go by now, if any, and what it belongs to."""
    return _LANE.get()
