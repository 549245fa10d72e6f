"""The two layouts of videos: with frames as an axis, and with frames in the batch as if they were pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def apart(h: torch.Tensor, frames: int) -> torch.Tensor:
    """Frames in the batch, (videos·frames, channels, height, width), as (videos, channels, frames, height, width)."""
    return h.unflatten(0, (-1, frames)).transpose(1, 2)


def together(h: torch.Tensor) -> torch.Tensor:
    """Videos (videos, channels, frames, height, width) as frames in the batch."""
    return h.transpose(1, 2).flatten(0, 1)


def for_frames(value: Any, videos: int, frames: int) -> Any:
    """``value`` with a row for each frame in every tensor that has one for each of ``videos``.

    Mappings, lists and tuples, named ones too, are gone through; whatever else there is stays as it is.
    """
    if isinstance(value, torch.Tensor):
        fits = value.ndim > 0 and len(value) == videos
        return value.repeat_interleave(frames, dim=0) if fits else value
    if isinstance(value, Mapping):
        return {name: for_frames(part, videos, frames) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [for_frames(part, videos, frames) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def context_of_frames(context: torch.Tensor, videos: int, frames: int) -> torch.Tensor:
    """Tokens to attend to, a row for each frame, from (videos, tokens, channels) or (videos, frames, tokens, …).

    Those that have a row for each frame stay as they are.
    """
    return context.flatten(0, 1) if context.ndim == 4 else for_frames(context, videos, frames)
