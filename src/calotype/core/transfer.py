"""Small tensors on their way to a device, without waiting for what it is doing."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str | int | None) -> Tensor:
    """``tensor`` on ``device``. From the host to CUDA it goes by way of pinned memory, so that the host runs ahead.

    A copy from ordinary memory makes the host wait until all work before it is done.
    """
    if device is None:
        return tensor
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
