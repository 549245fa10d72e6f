"""The memory of devices."""

from __future__ import annotations

import torch


def empty_cache(device: torch.device) -> None:
    """Give memory that is not in use back to the device, where its backend keeps some."""
    if device.type not in ("cpu", "meta"):
        getattr(torch.get_device_module(device), "empty_cache", lambda: None)()
