"""Kernels compiled side by side before a call launches the first of them; otherwise one is when it is launched.

A Triton kernel is compiled for the types and some properties of its arguments: a model's first call needs some thirty
of such forms, and each takes Triton, an assembler and a C compiler. One in CUDA C++ (`cuda/program.py`) is compiled for
what is defined for it. What a call will launch is found out by the call itself: where it comes to a form that is new
to the process, it is given up and goes through once with nothing launched, while other threads compile; then it is
computed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST, EACH = 32, 2
"""Kernels that are compiled at a time at most, and for each processor: they wait for each other and for compilers."""


class _Unknown(Exception):
    """A call has come to a form of a kernel that is new to the process."""


class Launch(Protocol):
    """A launch of a kernel with its arguments, in Triton or in CUDA C++, that is yet to be made by :func:`launched`."""

    @property
    def form(self) -> Hashable:
        """What the kernel is compiled for; seldom the same for two that differ, often different for two alike."""

    @property
    def known(self) -> set[Hashable]:
        """The forms of such kernels that were launched or compiled since the process began."""

    def now(self) -> Any:
        """Make the launch, for which the kernel is compiled if it is not yet."""

    def preparation(self) -> Callable[[], None] | None:
        """What has the kernel ready for such a launch, in any thread; it keeps no memory. None if nothing can."""


def launched(launch: Launch) -> Any:
    """Make a launch, or do with it what this thread does in place of launching."""
    instead = _INSTEAD.get()
    return launch.now() if instead is None else instead(launch)


class Kernel:
    """A Triton kernel, launched as ever: ``kernel[grid](…)``."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.constant = ["constexpr" in str(kind) for kind in _kinds(function.fn)]
        self.known: set[Hashable] = set()
        self.loading = threading.Lock()
        """What launches the forms of a kernel is mostly the same program, which the second then finds on disk."""

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return partial(self._launched, grid)

    def _launched(self, grid: Any, *args: Any, **options: Any) -> Any:
        return launched(_OfTriton(self, grid, args, options))


@dataclass(frozen=True)
class _OfTriton:
    """The launch of a Triton kernel."""

    kernel: Kernel
    grid: Any
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def form(self) -> Hashable:
        return *map(_form, self.args, self.kernel.constant), *self.options.items()

    @property
    def known(self) -> set[Hashable]:
        return self.kernel.known

    def now(self) -> Any:
        return self.kernel.function[self.grid](*self.args, **self.options)

    def preparation(self) -> Callable[[], None] | None:
        tensors = [value for value in _one_by_one(self.args) if isinstance(value, torch.Tensor)]
        if not all(map(_is_aligned, tensors)):
            return None
        types = list(map(_without_memory, self.args))
        return partial(_ready, self.kernel, tensors[0].device, self.grid, types, self.options)


def _kinds(function: Callable[..., Any]) -> list[Any]:
    """The annotation of each argument."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return [function.__annotations__.get(name) for name in names]


def _one_by_one(values: Iterable[Any]) -> Iterator[Any]:
    """The values, and what is in tuples among them."""
    for value in values:
        if isinstance(value, tuple):
            yield from _one_by_one(value)
        else:
            yield value


def _without_memory(value: Any) -> Any:
    """A type in the place of a tensor, whose memory is not kept."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    return tuple(map(_without_memory, value)) if isinstance(value, tuple) else value


def _form(value: Any, constant: bool) -> Hashable:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.device, _is_aligned(value)
    if isinstance(value, bool) or constant:
        return value
    if isinstance(value, tuple):
        return tuple(_form(one, constant) for one in value)
    if isinstance(value, int):
        return value == 1, value % 16 == 0, value < 2**31
    return type(value).__name__


def _is_aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % 16 == 0


_INSTEAD: ContextVar[Callable[[Launch], None] | None] = ContextVar(
    "calotype_instead_of_launching", default=None
)


@contextmanager
def _instead(of_launching: Callable[[Launch], None] | None) -> Iterator[None]:
    token = _INSTEAD.set(of_launching)
    try:
        yield
    finally:
        _INSTEAD.reset(token)


def compiled_first(call: Callable[[], T]) -> T:
    """The result of ``call``, before which the kernels that it launches have been compiled if some are new.

    Then the call is made twice, so it must leave nothing behind.
    """
    try:
        with _instead(_launch_if_known):
            return call()
    except _Unknown:
        pass
    with ThreadPoolExecutor(min(MOST, EACH * (os.cpu_count() or 1)), "calotype-kernels") as threads:
        waiting: list[Future[None]] = []
        try:
            with _instead(partial(_compile, threads, waiting)):
                call()
        except Exception as error:  # nothing was computed, so nothing is wrong with any result
            logger.debug("Not all kernels were compiled ahead: %s", error)
    for one in waiting:
        if (problem := one.exception()) is not None:  # launching it will say so again
            logger.debug("A kernel was not compiled ahead: %s", problem)
    return at_once(call)


def at_once(call: Callable[[], T]) -> T:
    """The result of ``call``, in which kernels are compiled where they are launched, whatever else this thread does."""
    with _instead(None):
        return call()


def _launch_if_known(launch: Launch) -> None:
    if launch.form not in launch.known:
        raise _Unknown
    launch.now()


def _compile(threads: ThreadPoolExecutor, waiting: list[Future[None]], launch: Launch) -> None:
    """Let a thread compile the kernel for such a launch, if it is not known for it."""
    form = launch.form
    if form in launch.known:
        return
    launch.known.add(form)
    if (preparation := launch.preparation()) is not None:
        waiting.append(threads.submit(preparation))


def _ready(kernel: Kernel, place: torch.device, grid: Any, args: list[Any], options: dict[str, Any]) -> None:
    """Compile the kernel and have it ready for launching."""
    with torch.cuda.device(place):
        compiled = kernel.function.warmup(*map(_mock, args), grid=grid, **options)
        with kernel.loading:
            _ = compiled.run  # which builds what launches it and brings it to the device


def _mock(value: Any) -> Any:
    """What stands for tensors in a tuple; a type that is an argument by itself Triton knows."""
    if not isinstance(value, tuple) or not any(isinstance(one, torch.dtype) for one in value):
        return value
    from triton.runtime.jit import MockTensor

    return tuple(map(MockTensor.wrap_dtype, value))
