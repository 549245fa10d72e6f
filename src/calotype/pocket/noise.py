"""Cheap repeatable randomness on the plane: an integer hash and value noise, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def hash01(i: Tensor, j: Tensor) -> Tensor:
    """A number in [0, 1) for each integer cell (floats holding integers); int32 wraps alike everywhere."""
    h = i.to(torch.int32) * 374761393 + j.to(torch.int32) * 668265263
    h = (h ^ (h >> 13)) * 1274126177
    h = h ^ (h >> 16)
    return (h & 0xFFFF).to(torch.float32) * (1.0 / 65536.0)


def value_noise(x: Tensor, y: Tensor) -> Tensor:
    """Smooth noise in [0, 1] with features of unit size: hashed corners, cubic blend."""
    i, j = torch.floor(x), torch.floor(y)
    u, v = x - i, y - j
    u, v = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v)
    low = hash01(i, j) * (1.0 - u) + hash01(i + 1.0, j) * u
    high = hash01(i, j + 1.0) * (1.0 - u) + hash01(i + 1.0, j + 1.0) * u
    return low * (1.0 - v) + high * v
