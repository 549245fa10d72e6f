"""FreeU: what comes from below counts more, the low frequencies of what comes across count less.

https://arxiv.org/abs/2309.11497
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class FreeU(NamedTuple):
    """Factors of the first (1) and second (2) up stage: ``s`` for the skips, ``b`` for the backbone."""

    s1: float
    s2: float
    b1: float
    b2: float

    def of_stage(self, index: int) -> tuple[float, float] | None:
        """(skip factor, backbone factor) of up stage ``index``, None where FreeU changes nothing."""
        return {0: (self.s1, self.b1), 1: (self.s2, self.b2)}.get(index)


def scale_low_frequencies(x: torch.Tensor, scale: float, threshold: int = 1) -> torch.Tensor:
    """``x`` (batch, channels, height, width) with its lowest spatial frequencies multiplied by ``scale``.

    Frequencies -threshold to threshold - 1 of both axes count as low.
    """
    spectrum = torch.fft.fft2(x.float())

    def is_low(size: int) -> torch.Tensor:
        index = torch.arange(size, device=x.device)  # frequencies 0, 1, …, …, -2, -1
        return (index < threshold) | (index >= size - threshold)

    low = is_low(x.shape[-2])[:, None] & is_low(x.shape[-1])
    gain = torch.where(low, scale, 1.0)
    return torch.fft.ifft2(spectrum * gain).real.to(x.dtype)


def apply_freeu(
    hidden: torch.Tensor, skip: torch.Tensor, factors: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The backbone's features with their first half amplified, and the skip's with low frequencies scaled."""
    skip_factor, backbone_factor = factors
    half = hidden.shape[1] // 2
    hidden = torch.cat([hidden[:, :half] * backbone_factor, hidden[:, half:]], dim=1)
    return hidden, scale_low_frequencies(skip, skip_factor)
