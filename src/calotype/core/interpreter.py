"""Settings of the Python interpreter that hold for all threads while models are loaded, and are restored then."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SWITCH = 0.0005
"""Seconds after which a thread that computes lets another go on; 0.005 is usual, in which 30 MB could be read."""


class _Setting:
    """A change made by the first who asks for it and undone by the last."""

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        self._change, self._lock, self._users = change, threading.Lock(), 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._undo = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo()


def _often() -> Callable[[], object]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, SWITCH))
    return lambda: sys.setswitchinterval(usual)


def _keep() -> Callable[[], object]:
    if not gc.isenabled():
        return lambda: None
    gc.disable()
    return gc.enable


switching_often = _Setting(_often)
"""Within this, threads that wait for the interpreter get it from one that computes soon."""

keeping_all = _Setting(_keep)
"""Within this, no garbage is collected: none of the 100,000 objects of a large model is any, and to look for it among
them and all that is imported takes half as long as to make them."""
