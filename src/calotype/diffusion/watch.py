"""In which step a result stopped being numbers; the device is waited for when it has been given all its work."""

from __future__ import annotations

import torch

from calotype.diffusion.images import not_finite
from calotype.diffusion.loop import Observe, State


class Watch:
    """A mark for each step of a run of the loop, which stays on the device until something is found to be wrong."""

    def __init__(self) -> None:
        self.marks: list[torch.Tensor] = []
        self.timesteps: list[torch.Tensor] = []
        self._ended: tuple[torch.Tensor, torch.dtype] | None = None

    def over(self, observe: Observe) -> Observe:
        """``observe`` for a new run, with each step marked before what a callback does to it."""
        self.check()
        marks, timesteps = self.marks, self.timesteps = [], []

        def marked(index: int, timestep: torch.Tensor, state: State) -> State:
            # zero times a finite number is zero, times NaN or infinity it is NaN
            marks.append((state.latents.detach() * 0).sum())
            timesteps.append(timestep)
            return observe(index, timestep, state)

        return marked

    def ended(self, latents: torch.Tensor) -> None:
        """The run has led to these latents; :meth:`check` says whether they are finite, on the host at once."""
        self._ended = torch.isfinite(latents).all(), latents.dtype
        if not is_ahead(latents.device):
            self.check()

    def check(self) -> None:
        """Raise ``NonFiniteError`` if a run ended in latents that are not finite, with the first step that gave such.

        This waits for the device, so it is for when that has been given what comes after.
        """
        if self._ended is None:
            return
        (finite, dtype), self._ended = self._ended, None
        if finite:
            return
        for number, (mark, timestep) in enumerate(zip(self.marks, self.timesteps, strict=True), 1):
            if not torch.isfinite(mark):
                since = f" since step {number} of {len(self.marks)} (timestep {float(timestep):g}),"
                raise not_finite("The denoised latents", dtype, since)
        raise not_finite("The denoised latents", dtype, " after the last step,")


def is_ahead(device: torch.device) -> bool:
    """Whether the host goes on while this device computes."""
    return device.type != "cpu"
