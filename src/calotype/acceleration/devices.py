"""What captures and replays work: CUDA graphs, or a stand-in for them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from calotype.core.lanes import lane
from calotype.core.random import UNSEEDED


class Replay(Protocol):
    """Captured work, to be done again on the memory that it was captured with."""

    def replay(self) -> None: ...


class Device(Protocol):
    """A device that can capture the work that a function gives it."""

    def capture(self, function: Callable[[], Any]) -> tuple[Replay, Any]:
        """The captured work, and what the function returned: memory that each replay fills anew."""
        ...

    def in_order(self, *kept: Any) -> AbstractContextManager[Any]:
        """Within this, work waits for all replays before it, on whatever stream they were.

        What it reads and writes is ``kept`` as long as others could be given that memory too early.
        """
        ...

    def current(self) -> AbstractContextManager[Any]:
        """Within this, kernels run on this device."""
        ...

    def settle(self) -> None:
        """Wait until all replays are done, so that their memory can be given away."""
        ...


class CudaGraphs:
    """CUDA graphs of one device, whose intermediate results share one pool of memory.

    The pool is why replays must not overlap: each waits for the one before. Those of one ``lane`` do not wait for those
    of another: each has a pool, and all but the first a stream, on which its work begins after what the caller has
    launched so far and which the caller waits for where the lanes meet.
    """

    def __init__(self, device: torch.device, lane: int = 0) -> None:
        self.device = device
        self.pool: Any = None
        self.stream = torch.cuda.Stream(device) if lane else None
        # libraries have memory for each stream, which work that is captured on it shares
        self._capturing = torch.cuda.Stream(device) if lane else None
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
            with (
                UNSEEDED,
                torch.cuda.graph(
                    graph, pool=self.pool, stream=self._capturing, capture_error_mode="thread_local"
                ),
            ):
                result = function()
        self._graphs.add(graph)
        return graph, result

    def in_order(self, *kept: Any) -> AbstractContextManager[Any]:
        return _InOrder(self, kept)

    def current(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device)

    def settle(self) -> None:
        with self._lock:
            if self._last is not None:
                self._last.synchronize()


class _InOrder:
    def __init__(self, graphs: CudaGraphs, kept: tuple[Any, ...]) -> None:
        self.graphs, self.kept = graphs, kept
        self.beside: Any = None

    def __enter__(self) -> None:
        graphs = self.graphs
        graphs._lock.acquire()
        stream = torch.cuda.current_stream(graphs.device)
        if graphs.stream is not None:
            graphs.stream.wait_stream(stream)
            self.beside = torch.cuda.stream(graphs.stream)
            self.beside.__enter__()
        elif graphs._last is not None:
            stream.wait_event(graphs._last)

    def __exit__(self, *exception: Any) -> None:
        graphs = self.graphs
        try:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(graphs.device))
            graphs._last = event
            if self.beside is not None:
                self.beside.__exit__(*exception)
                self._until_lanes_meet(event)
        finally:
            graphs._lock.release()

    def _until_lanes_meet(self, event: torch.cuda.Event) -> None:
        def wait() -> None:
            torch.cuda.current_stream(self.graphs.device).wait_event(event)

        if (found := lane()) is None:
            wait()
            return
        _, lanes = found
        lanes.ends.append(wait)
        lanes.kept.append(self.kept)
