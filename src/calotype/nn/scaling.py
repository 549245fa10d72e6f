"""Scaling by a number that may be in the memory of a device."""

from __future__ import annotations

import torch


def scaled(x: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    """``x`` times a number, or a tensor of numbers that broadcasts to its shape, in the type of ``x``.

    A tensor is computed with in the wider type of both: what is read from a device is as exact as a number.
    """
    return (x * factor).to(x.dtype)
