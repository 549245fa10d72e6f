"""A GPU that is not here, for which Triton compiles all the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def pretended(launched: list[str]) -> Any:
    """Triton's driver of a device of compute capability 9.0, which only notes the names of what it is to launch."""
    from triton.backends.compiler import GPUTarget

    return SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=lambda src, metadata: lambda *args: launched.append(metadata.name),
        utils=SimpleNamespace(
            load_binary=lambda *args: (object(), 1, 8, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 2**20},
        ),
    )
