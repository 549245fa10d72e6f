"""Whether kernels in CUDA C++ run on a device: on Hopper's processors, whose own instructions they are written in."""

from __future__ import annotations

import logging
from functools import cache, partial
from importlib import import_module

import torch

from calotype.acceleration.ahead import compiled_first
from calotype.acceleration.cuda.program import Missing

logger = logging.getLogger(__name__)

MAJOR = 9
"""The compute capability's first number; code for 9.0's own instructions runs on no later one."""
CHECKED = ("gate_products", "convolutions", "group_norm_cluster", "narrow_attention")
"""The modules of such kernels, whose ``check`` gives what one computes of little, and what that should be."""


@cache
def available(device: torch.device) -> bool:
    """Whether all of them can be compiled and launched and are right on the device.

    Where they could be and are not, a line in the log says why. Asked for the first time it takes as long as compiling
    does, and is not for a capture.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != MAJOR:
        return False
    try:
        # whatever the caller computes in
        modes = torch.inference_mode(False), torch.no_grad(), torch.autocast("cuda", enabled=False)
        with torch.cuda.device(device), modes[0], modes[1], modes[2]:
            compiled_first(partial(_check, device))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        level = logging.INFO if isinstance(error, Missing) else logging.WARNING
        logger.log(
            level, "Gates, convolutions, group norms and narrow attention go without CUDA C++: %s.", reason
        )
        return False
    return True


def _check(device: torch.device) -> None:
    checks = [import_module(f"calotype.acceleration.kernels.{name}").check for name in CHECKED]
    # all are launched first, so that a pass with nothing launched meets them all
    for values, right in [check(device) for check in checks]:
        torch.testing.assert_close(values, right, rtol=2e-2, atol=2e-2)
