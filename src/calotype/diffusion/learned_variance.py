"""Denoisers that predict the variance of a step beside its mean (arXiv:2102.09672)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from calotype.diffusion.guidance import COND, Around, Guidance, Moment

LEARNED = ("learned", "learned_range")
"""The variance types with which a scheduler's step reads the denoiser's own variance."""


def reads_variance(scheduler: Any) -> bool:
    """Whether the scheduler's step takes twice the latents' channels: the mean's, then the variance's."""
    return scheduler.config.get("variance_type") in LEARNED


def without_variance(prediction: torch.Tensor, channels: int, scheduler: Any) -> torch.Tensor:
    """A prediction cut to the latents' ``channels``, unless the scheduler reads the variance behind them."""
    return prediction if reads_variance(scheduler) else prediction[:, :channels]


@dataclass(frozen=True)
class GuidedMean(Around):
    """Guidance of the mean alone: of the variances, the second half of the channels, the prompt's is taken."""

    def at(self, moment: Moment) -> Guidance:
        """With what guides the mean in this step."""
        return GuidedMean(self.guidance.at(moment))

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The guided mean, followed by the prompt's variance."""
        means, variances = zip(*(prediction.chunk(2, dim=1) for prediction in predictions), strict=True)
        return torch.cat([self.guidance.combine(means), variances[self.branches.index(COND)]], dim=1)


def guiding_the_mean(guidance: Guidance, scheduler: Any) -> Guidance:
    """``guidance`` for predictions as this scheduler reads them."""
    return GuidedMean(guidance) if reads_variance(scheduler) else guidance
