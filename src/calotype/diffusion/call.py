"""What every part of the library may know of one call of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from calotype.diffusion.guidance import Guidance
from calotype.diffusion.inputs import Noise, Steps, frames_of

if TYPE_CHECKING:
    from calotype.diffusion.family import Family


@dataclass(frozen=True)
class Call:
    """A checked call: the family with its components, the user's arguments, and what was decided from them."""

    family: Family
    arguments: Mapping[str, Any]
    subject: Any
    """The input group that says what to make and, as ``pictures``, how many."""
    guidance: Guidance
    height: int
    width: int
    device: torch.device
    perturbed: frozenset[torch.nn.Module] = frozenset()
    """The attention layers that guidance perturbs."""

    def told(self, more: Mapping[str, Any]) -> Call:
        """The same call with more arguments: what was sampled before."""
        return replace(self, arguments={**self.arguments, **more}) if more else self

    @property
    def pictures(self) -> int:
        """Pictures in the whole call."""
        return self.subject.pictures

    @property
    def noise(self) -> Noise:
        """Where randomness comes from."""
        return Noise.of(self.arguments).by_row(self.pictures)

    @property
    def steps(self) -> Steps:
        """The path from noise to picture."""
        return Steps.of(self.arguments)

    @property
    def scheduler(self) -> Any:
        """The scheduler that runs this call."""
        return self.family.scheduler

    @property
    def frames(self) -> int | None:
        """Frames of each video, as many as are asked for or given; None where what is made are pictures."""
        return frames_of(self.arguments)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of all latents of the call."""
        shape = self.family.latent_shape(self.pictures, self.height, self.width)
        frames = self.frames
        return shape if frames is None else self.family.video_shape(shape, frames)
