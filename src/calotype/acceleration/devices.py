"""What captures and replays work: CUDA graphs, or a stand-in for them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from calotype.core.random import UNSEEDED


class Replay(Protocol):
    """Captured work, to be done again on the memory that it was captured with."""

    def replay(self) -> None: ...


class Device(Protocol):
    """A device that can capture the work that a function gives it."""

    def capture(self, function: Callable[[], Any]) -> tuple[Replay, Any]:
        """The captured work, and what the function returned: memory that each replay fills anew.

        All that is allocated in a capture, the result too, is there until another capture is replayed. What is to be
        read later lies in memory that was allocated before.
        """
        ...

    def in_order(self) -> AbstractContextManager[Any]:
        """Within this, work waits for all replays before it, on whatever stream they were."""
        ...

    def current(self) -> AbstractContextManager[Any]:
        """Within this, kernels run on this device."""
        ...

    def settle(self) -> None:
        """Wait until all replays are done, so that their memory can be given away."""
        ...


class CudaGraphs:
    """CUDA graphs of one device, whose intermediate results share one pool of memory.

    The pool is why replays must not overlap: each waits for the one before. And it is why nothing in it outlives
    another graph's replay: a graph writes to whatever was free when it was captured, though tensors that are kept may
    have got that memory since.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._last: torch.cuda.Event | None = None
        self._lock = threading.RLock()

    def capture(self, function: Callable[[], Any]) -> tuple[Replay, Any]:
        with torch.cuda.device(self.device):
            if not self._graphs:  # a pool that no graph uses any more cannot be taken up again
                self.pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            torch.cuda.current_stream().synchronize()
            # the device's own generator takes part in a capture and cannot be drawn from meanwhile
            with UNSEEDED, torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                result = function()
        self._graphs.add(graph)
        return graph, result

    def in_order(self) -> AbstractContextManager[Any]:
        return _InOrder(self)

    def current(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device)

    def settle(self) -> None:
        with self._lock:
            if self._last is not None:
                self._last.synchronize()


class _InOrder:
    def __init__(self, graphs: CudaGraphs) -> None:
        self.graphs = graphs

    def __enter__(self) -> None:
        self.graphs._lock.acquire()
        if self.graphs._last is not None:
            torch.cuda.current_stream(self.graphs.device).wait_event(self.graphs._last)

    def __exit__(self, *exception: Any) -> None:
        try:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.graphs.device))
            self.graphs._last = event
        finally:
            self.graphs._lock.release()
