"""The two layouts of videos: with frames as an axis, and with frames in the batch as if they were pictures."""

from __future__ import annotations

import torch


def apart(h: torch.Tensor, frames: int) -> torch.Tensor:
    """Frames in the batch, (videos·frames, channels, height, width), as (videos, channels, frames, height, width)."""
    return h.unflatten(0, (-1, frames)).transpose(1, 2)


def together(h: torch.Tensor) -> torch.Tensor:
    """Videos (videos, channels, frames, height, width) as frames in the batch."""
    return h.transpose(1, 2).flatten(0, 1)
