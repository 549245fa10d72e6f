"""Attention along time in overlapping windows, for videos that are longer than a model knows (arXiv:2310.15169)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from calotype.core.errors import InputError

_FAINT = 0.01
"""The weight of what a delayed weighting leaves to the window before."""


def flat(length: int) -> list[float]:
    """Every frame of a window counts the same."""
    return [1.0] * length


def pyramid(length: int) -> list[float]:
    """A frame counts by how far it is from the nearer end of its window, which itself counts 1."""
    return [1.0 + min(place, length - 1 - place) for place in range(length)]


def delayed_reverse_sawtooth(length: int) -> list[float]:
    """The first half of a window hardly counts; then the weights fall from the middle one to 1."""
    middle = (length + 1) // 2
    falling = [float(weight) for weight in range(middle, 0, -1)]
    top = [float(middle)] if length % 2 == 0 else []
    return [_FAINT] * (length - middle - len(top)) + top + falling


WEIGHTINGS: dict[str, Callable[[int], list[float]]] = {
    "flat": flat,
    "pyramid": pyramid,
    "delayed_reverse_sawtooth": delayed_reverse_sawtooth,
}
"""How the frames of a window count in the mean over windows, by name."""


@dataclass(frozen=True)
class Windows:
    """Windows of so many frames (``length``), one every ``stride``, whose frames count as ``weighting`` says.

    It goes with a call, as ``cross_attention_kwargs={"windows": …}``, and changes nothing in the model. Raises
    ``InputError`` for lengths that leave frames out, and for a weighting that there is none of.
    """

    length: int = 16
    stride: int = 4
    weighting: str = "pyramid"

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.length:
            raise InputError(
                f"Windows of {self.length} frames cannot begin every {self.stride} frames; the distance must be from 1 "
                f"to the length, so that every frame is in one."
            )
        if self.weighting not in WEIGHTINGS:
            raise InputError(
                f"The frames of windows count as {', '.join(WEIGHTINGS)}, not {self.weighting!r}."
            )

    def mean(self, function: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """``function`` of each window of tokens (batch, frames, channels), in the weighted mean over windows.

        Frames behind the last whole window are taken from the window that ends with them.
        """
        frames = tokens.shape[1]
        if frames <= self.length:
            return function(tokens)
        weights = tokens.new_tensor(WEIGHTINGS[self.weighting](self.length))[:, None]
        total, counts = torch.zeros_like(tokens), tokens.new_zeros(frames, 1)
        end = 0
        for begin in range(0, frames - self.length + 1, self.stride):
            end = begin + self.length
            total[:, begin:end] += function(tokens[:, begin:end]) * weights
            counts[begin:end] += weights
        if end < frames:
            total[:, end:] = function(tokens[:, -self.length :])[:, end - frames :]
            counts[end:] = 1
        return total / counts
