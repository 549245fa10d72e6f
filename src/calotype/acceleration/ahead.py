"""Kernels compiled side by side before a call launches the first of them; Triton compiles one when it is launched.

A kernel is compiled for the types and some properties of its arguments: a model's first call needs some thirty of such
forms, and each takes Triton, an assembler and a C compiler. What a call will launch is found out by the call itself:
where it comes to a form that is new to the process, it is given up and goes through once with nothing launched, while
other threads compile; then it is computed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch

from calotype.acceleration.overlapped import launched_so

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST = 16
"""Kernels that are compiled at a time, if there are so many processors."""


class _Unknown(Exception):
    """A call has come to a form of a kernel that is new to the process."""


class Kernel:
    """A Triton kernel, launched as ever: ``kernel[grid](…)``.

    One with an argument ``NEXT`` may begin before the one before it has ended, where that is on (`overlapped.py`).
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        kinds = _kinds(function.fn)
        self.constant = ["constexpr" in str(kind) for kind in kinds.values()]
        self.waits = "NEXT" in kinds
        self.known: set[Hashable] = set()
        """The forms that were launched or compiled since the process began."""

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        instead = _INSTEAD.get()
        launch: Callable[..., Any] = self.function[grid] if instead is None else partial(instead, self, grid)
        more = launched_so() if self.waits else None
        return partial(launch, **more) if more else launch

    def form(self, args: tuple[Any, ...], options: dict[str, Any]) -> Hashable:
        """What the kernel is compiled for; seldom the same for two that differ, often different for two alike."""
        return *map(_form, args, self.constant), *options.items()


def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each argument."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return {name: function.__annotations__.get(name) for name in names}


def _form(value: Any, constant: bool) -> Hashable:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.device, _is_aligned(value)
    if isinstance(value, bool) or constant:
        return value
    if isinstance(value, int):
        return value == 1, value % 16 == 0, value < 2**31
    return type(value).__name__


def _is_aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % 16 == 0


_INSTEAD: ContextVar[Callable[..., None] | None] = ContextVar("calotype_instead_of_launching", default=None)


@contextmanager
def _instead(launch: Callable[..., None]) -> Iterator[None]:
    token = _INSTEAD.set(launch)
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
    with ThreadPoolExecutor(min(MOST, os.cpu_count() or 1), "calotype-kernels") as threads:
        waiting: list[Future[None]] = []
        try:
            with _instead(partial(_compile, threads, waiting)):
                call()
        except Exception as error:  # nothing was computed, so nothing is wrong with any result
            logger.debug("Not all kernels were compiled ahead: %s", error)
    for one in waiting:
        if (problem := one.exception()) is not None:  # launching it will say so again
            logger.debug("A kernel was not compiled ahead: %s", problem)
    return call()


def _launch_if_known(kernel: Kernel, grid: Any, *args: Any, **options: Any) -> None:
    if kernel.form(args, options) not in kernel.known:
        raise _Unknown
    kernel.function[grid](*args, **options)


def _compile(
    threads: ThreadPoolExecutor,
    waiting: list[Future[None]],
    kernel: Kernel,
    grid: Any,
    *args: Any,
    **options: Any,
) -> None:
    """Let a thread compile the kernel for such arguments, if it is not known for them."""
    form = kernel.form(args, options)
    if form in kernel.known:
        return
    kernel.known.add(form)
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    if all(map(_is_aligned, tensors)):
        # a type stands for a tensor, whose memory is not kept
        types = [value.dtype if isinstance(value, torch.Tensor) else value for value in args]
        waiting.append(threads.submit(_ready, kernel, tensors[0].device, grid, types, options))


def _ready(kernel: Kernel, place: torch.device, grid: Any, args: list[Any], options: dict[str, Any]) -> None:
    """Compile the kernel and have it ready for launching."""
    with torch.cuda.device(place):
        compiled = kernel.function.warmup(*args, grid=grid, **options)
        _ = compiled.run  # which builds what launches it and brings it to the device
