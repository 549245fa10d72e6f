"""Kernels that may begin before the one before them has ended, by programmatic dependent launch.

A device takes a microsecond or more from a kernel's end to the next one's first instruction. A kernel launched so is
brought to the processors meanwhile and waits there for the end of what was before (`kernels/succession.py`). It needs
compute capability 9.0, Triton 3.4, and, in captures, a driver of CUDA 12.3. The order of all reads and writes is as
ever, since every program of such a kernel waits first. Only the way from kernel to kernel in a stream is concerned.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)

NEXT = "at once"
"""When a kernel lets the next one be brought to the processors.

"while waiting" for the one before, "at once" after that, "once loaded", or "at the end". All of a kernel's programs
must have come to that point, so the next one never takes the place of programs that have yet to begin.
"""
CAPABILITY = (9, 0)

_ON: ContextVar[bool] = ContextVar("calotype_overlapped", default=False)


@contextmanager
def overlapped(on: bool) -> Iterator[None]:
    """Within this, in this thread, kernels are launched so or not; on only where it is :func:`allowed`."""
    token = _ON.set(on)
    try:
        yield
    finally:
        _ON.reset(token)


def is_on() -> bool:
    """Whether kernels are launched so."""
    return _ON.get()


def launched_so() -> dict[str, Any]:
    """What a kernel that knows how to wait is launched with beside its own: the argument, and Triton's option."""
    return {"NEXT": NEXT, "launch_pdl": True} if is_on() else {}


@cache
def allowed(device: torch.device) -> bool:
    """Whether kernels can be launched and captured so on a device, and compute the same then.

    Where they should and cannot, a warning says why.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        return False
    if not is_known():
        logger.info("Kernels are not overlapped: this Triton cannot launch them so (3.4 can).")
        return False
    try:
        _try_out(device)
    except Exception as error:  # each kernel waits for the end of the one before, as ever
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning("Kernels are not overlapped: %s.", reason)
        return False
    return True


def is_known() -> bool:
    """Whether this Triton has the option to launch kernels so."""
    try:
        from triton.backends.nvidia.compiler import CUDAOptions
    except ImportError:
        return False
    return "launch_pdl" in CUDAOptions.__dataclass_fields__


def _try_out(device: torch.device) -> None:
    """Launch and capture kernels that read what was written just before, by a copy too; raise where that is wrong."""
    from calotype.acceleration.devices import CudaGraphs
    from calotype.acceleration.kernels import layer_norm

    with torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
        x = torch.linspace(-2, 2, 4096, device=device).view(64, 64)
        w = torch.linspace(0.5, 1.5, 64, device=device)

        def call() -> torch.Tensor:
            y = x.clone()
            for _ in range(4):
                y = layer_norm.fused(y, w, w, 1e-5)[1]
            return y

        right = call()
        with overlapped(True):
            torch.testing.assert_close(call(), right, rtol=0, atol=0)
            graph, found = CudaGraphs(device).capture(call)
        for _ in range(2):
            found.zero_()
            graph.replay()
            torch.testing.assert_close(found, right, rtol=0, atol=0)
