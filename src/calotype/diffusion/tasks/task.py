"""What a task is to the rest of the library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from calotype.diffusion.guidance import Guidance
from calotype.diffusion.inputs import Size

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.loop import State
    from calotype.families.family import Family

Reimpose = Callable[[int, "State"], torch.Tensor]
"""(step, state after it) -> the latents that the next step starts from."""


@dataclass(frozen=True)
class Path:
    """The part of a schedule that a call visits: its timesteps and the number of steps that they are."""

    timesteps: torch.Tensor
    steps: int


@dataclass(frozen=True)
class Start:
    """What a task hands to the loop.

    ``tensors`` are named values that callbacks may see and replace; ``channels`` names those that the denoiser reads
    beside the latents, in order: one item a picture for all branches, or the branches stacked. ``conditions`` are what
    the task tells the denoiser beside what the family does.
    """

    latents: torch.Tensor
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    reimpose: Reimpose | None = None
    conditions: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Task(ABC):
    """What is made of the given inputs."""

    tensor_names: tuple[str, ...] = ()
    """The tensors beyond the family's that a callback may ask for."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:  # noqa: B027
        """Refuse what this task cannot work with, before anything is computed; most work with anything."""

    def guidance(self, family: Family, arguments: Mapping[str, Any]) -> Guidance:
        """The guidance that a call's arguments ask for: the family's, where the task needs no other branches."""
        return family.guidance(arguments)

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """Height and width in pixels: as asked for, or what the model was trained for."""
        return Size.of(arguments).checked(family.default_size, family.multiple, pictures)

    def path(self, call: Call, path: Path) -> Path:
        """The part of the whole schedule that this call visits."""
        return path

    @abstractmethod
    def start(self, call: Call, path: Path) -> Start:
        """The latents at the noise level of the path's first timestep, and what goes with them.

        Random numbers are drawn here, in the reference's order.
        """

    def finish(self, call: Call, images: Any, output_type: str) -> Any:
        """The pictures that the user gets."""
        return images
