"""What a device allows a kernel."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from functools import cache

import torch
from triton.runtime import driver


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes near a processor that one program may use; the host, which interprets kernels, knows no limit."""
    if device.type != "cuda":
        return 2**30
    known: int | None = getattr(
        torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None
    )
    if known is not None:
        return known
    # Triton's way to the driver is compiled when it is first used, while everything waits
    index = torch.cuda.current_device() if device.index is None else device.index
    return driver.active.utils.get_device_properties(index)["max_shared_mem"]


@cache
def processors(device: torch.device) -> int:
    """How many programs a CUDA device computes at a time, if each takes a whole processor."""
    return torch.cuda.get_device_properties(device).multi_processor_count


DRIVER = 12030
"""The oldest driver that captures launches that come before the kernel before has ended: CUDA 12.3's."""


@cache
def can_wait(device: torch.device) -> bool:
    """Whether Triton's kernels can be brought to the processors before the one before has ended, and wait there.

    It is called programmatic dependent launch, and needs compute capability 9.0 and Triton 3.4.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    version = getattr(torch._C, "_cuda_getDriverVersion", None)
    if version is not None and version() < DRIVER:
        return False
    try:
        from triton.backends.nvidia.compiler import CUDAOptions
    except ImportError:
        return False
    return "launch_pdl" in CUDAOptions.__dataclass_fields__
