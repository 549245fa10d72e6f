"""A scheduler for pictures at work on videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calotype.core.frames import apart, together
from calotype.core.random import Generators


@dataclass(frozen=True)
class FrameByFrame:
    """Steps videos (videos, channels, frames, height, width) as so many pictures, which share the noise level.

    So what a solver draws or bounds picture by picture, it does frame by frame.
    """

    solver: Any

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The videos as the denoiser reads them."""
        return self.solver.scale_model_input(sample, timestep)

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **arguments: Any
    ) -> tuple[torch.Tensor, ...]:
        """The scheduler's step with the frames in the batch."""
        frames = sample.shape[2]
        if "generator" in arguments:
            arguments["generator"] = of_frames(arguments["generator"], frames)
        stepped = self.solver.step(together(model_output), timestep, together(sample), **arguments)
        return tuple(apart(one, frames) for one in stepped)


def of_frames(generator: Generators, frames: int) -> Generators:
    """A generator for each frame where there is one for each of several videos: that of its video."""
    if isinstance(generator, Sequence) and len(generator) > 1:
        return [one for one in generator for _ in range(frames)]
    return generator
