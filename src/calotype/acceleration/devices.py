"""What captures and replays work: CUDA graphs, or a stand-in for them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
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

    def scratch(self) -> AbstractContextManager[object | None]:
        """Within this, what is computed and allocated is so where captures are; to be used within :meth:`in_order`.

        So a capture of the same finds the memory that it needs. What was allocated is there until a capture is
        replayed, as in a capture. It gives what the memory is kept by until then, or ``None`` if PyTorch has not
        what this needs: then all is as ever, and so is what was allocated.
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


_BEGIN, _END, _RELEASE = (
    next((found for name in names if (found := getattr(torch._C, name, None)) is not None), None)
    for names in (
        ("_cuda_beginAllocateCurrentThreadToPool", "_cuda_beginAllocateCurrentStreamToPool"),
        ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"),
        ("_cuda_releasePool",),
    )
)
"""What PyTorch's allocator is told to take memory from a pool by; some names depend on the version."""


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream in which all work on pools is: memory that was freed in one is given to nothing in another.

    It is the same as long as the process lives, since what libraries need in a stream they keep for ever.
    """
    return torch.cuda.Stream(device)


class Hold:
    """Keeps a pool's memory from being given back."""

    def __init__(self, device: int, pool: Any) -> None:
        assert _RELEASE is not None
        weakref.finalize(self, _RELEASE, device, pool).atexit = False


class CudaGraphs:
    """CUDA graphs of one device, whose intermediate results share one pool of memory.

    The pool is why replays must not overlap: each waits for the one before. And it is why nothing in it outlives
    another graph's replay: a graph writes to whatever was free when it was captured, though tensors that are kept may
    have got that memory since.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _stream(device)
        self.pool: Any = None
        self._users: weakref.WeakSet[torch.cuda.CUDAGraph | Hold] = weakref.WeakSet()
        self._last: torch.cuda.Event | None = None
        self._lock = threading.RLock()

    def capture(self, function: Callable[[], Any]) -> tuple[Replay, Any]:
        with torch.cuda.device(self.device), self._in_use():
            graph = torch.cuda.CUDAGraph()
            torch.cuda.current_stream().synchronize()
            # the device's own generator takes part in a capture and cannot be drawn from meanwhile
            with (
                UNSEEDED,
                torch.cuda.graph(
                    graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
                ),
            ):
                result = function()
            self._users.add(graph)
        return graph, result

    @contextmanager
    def scratch(self) -> Iterator[Hold | None]:
        if _BEGIN is None or _END is None or _RELEASE is None:
            yield None
            return
        before = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(before)
        try:
            with torch.cuda.stream(self.stream):
                index = torch.cuda.current_device()
                with self._in_use():
                    _BEGIN(index, self.pool)
                    hold = Hold(index, self.pool)
                    self._users.add(hold)
                try:
                    yield hold
                finally:
                    _END(index, self.pool)
        finally:
            before.wait_stream(self.stream)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Within this the pool is one that can be taken up: one that nothing uses any more cannot be."""
        user = next(iter(self._users), None)  # which is kept until then
        if user is None:
            self.pool = torch.cuda.graph_pool_handle()
        yield
        del user

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
