"""In which step a result stopped being numbers, without waiting for the device in every step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from calotype.diffusion.images import not_finite
from calotype.diffusion.loop import Observe, State


@dataclass
class Watch:
    """A mark for each step, which stays on the device until something is found to be wrong."""

    marks: list[torch.Tensor] = field(default_factory=list)
    timesteps: list[torch.Tensor] = field(default_factory=list)

    def over(self, observe: Observe) -> Observe:
        """``observe``, with each step marked before what a callback does to it."""

        def marked(index: int, timestep: torch.Tensor, state: State) -> State:
            # zero times a finite number is zero, times NaN or infinity it is NaN
            self.marks.append((state.latents.detach() * 0).sum())
            self.timesteps.append(timestep)
            return observe(index, timestep, state)

        return marked

    def check(self, latents: torch.Tensor) -> None:
        """Raise ``NonFiniteError`` if the final latents are not finite, with the first step that had such ones."""
        if torch.isfinite(latents).all():
            return
        for number, (mark, timestep) in enumerate(zip(self.marks, self.timesteps, strict=True), 1):
            if not torch.isfinite(mark):
                since = f" since step {number} of {len(self.marks)} (timestep {float(timestep):g}),"
                raise not_finite("The denoised latents", latents.dtype, since)
        raise not_finite("The denoised latents", latents.dtype, " after the last step,")
