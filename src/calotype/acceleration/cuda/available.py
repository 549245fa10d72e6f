"""Whether kernels in CUDA C++ run on a device: on Hopper's processors, whose own instructions they are written in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from importlib import import_module

import torch
from torch import Tensor

from calotype.acceleration.ahead import compiled_first
from calotype.acceleration.cuda.program import Missing

logger = logging.getLogger(__name__)

MAJOR = 9
"""The compute capability's first number; code for 9.0's own instructions runs on no later one."""
CHECKED = (
    "layer_norm",
    "matrix_products",
    "gate_products",
    "convolutions",
    "group_norm_cluster",
    "narrow_attention",
    "short_attention",
)
"""The modules of such kernels, whose ``check`` gives what one computes of little, and what that should be."""


@cache
def available(device: torch.device) -> bool:
    """Whether all of them can be compiled and launched and are right on the device.

    Where they could be and are not, a line in the log says why. Asked for the first time it takes as long as compiling
    does, and is not for a capture.
    """
    try:
        with as_ever(device):
            for values, right in compiled_first(partial(tried, device)):
                torch.testing.assert_close(values, right, rtol=2e-2, atol=2e-2)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        level = logging.INFO if isinstance(error, Missing) else logging.WARNING
        logger.log(level, "Products, convolutions, norms and attention go without CUDA C++: %s.", reason)
        return False
    return _is_hopper(device)


def tried(device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """What each of them computes of little on the device, and what that should be; nothing where they cannot run."""
    if not _is_hopper(device):
        return []
    # all are launched before any is looked at, so that a pass with nothing launched meets them all
    return [import_module(f"calotype.acceleration.kernels.{name}").check(device) for name in CHECKED]


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == MAJOR


@contextmanager
def as_ever(device: torch.device) -> Iterator[None]:
    """A device computes as it does unless told otherwise, whatever the caller computes in."""
    modes = torch.inference_mode(False), torch.no_grad(), torch.autocast("cuda", enabled=False)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), modes[0], modes[1], modes[2]:
        yield
