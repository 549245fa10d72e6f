"""What a task is to the rest of the library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from calotype.diffusion.guidance import Guidance
from calotype.diffusion.inputs import Size, Steps
from calotype.image_processor import as_list, is_pil

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.loop import State

Reimpose = Callable[[int, "State"], torch.Tensor]
"""(step, state after it) -> the latents that the next step starts from."""


@dataclass(frozen=True)
class Path:
    """The part of a schedule that a call visits: its timesteps and the number of steps that they are.

    ``beyond`` counts the timesteps that come after ``denoising_end``, which another model visits; ``before`` those of
    the call that come before a part of its path.
    """

    timesteps: torch.Tensor
    steps: int
    beyond: int = 0
    before: int = 0

    @property
    def whole(self) -> int:
        """The timesteps of the way to the picture, whoever visits them."""
        return self.before + len(self.timesteps) + self.beyond


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
    noise: torch.Tensor | None = None
    """The noise in the latents, where they are not noise alone."""


class Go(Protocol):
    """Takes a state along a part of a call's path, with the call's solver or another one."""

    def __call__(self, state: State, path: Path, solver: Any = None) -> State: ...


class Task(ABC):
    """What is made of the given inputs."""

    tensor_names: ClassVar[tuple[str, ...]] = ()
    """The tensors beyond the family's that a callback may ask for."""

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:  # noqa: B027
        """Refuse what this task cannot work with, before anything is computed; most work with anything."""

    def beside(self, family: Family) -> tuple[int, ...]:
        """How many channels a denoiser may read beside the latents in this task; in most, none."""
        return (0,)

    def guidance(self, family: Family, arguments: Mapping[str, Any]) -> Guidance:
        """The guidance that a call's arguments ask for: the family's, where the task needs no other branches."""
        return family.guidance(arguments)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches of guidance that this task adds to the family's."""
        return ()

    def size(self, family: Family, arguments: Mapping[str, Any], pictures: int) -> tuple[int, int]:
        """Height and width in pixels: as asked for, or what the model was trained for."""
        return Size.of(arguments).checked(family.default_size, family.multiple, pictures)

    def steps(self, call: Call) -> Steps:
        """The schedule that is asked for, of which :meth:`path` may take a part."""
        return call.steps

    def schedule(self, call: Call) -> Mapping[str, Any]:
        """What the scheduler's ``set_timesteps`` is told beside the number of steps."""
        return {}

    def picture_options(self, call: Call) -> dict[str, Any]:
        """How pictures of the call are cut and fitted, as arguments of the image processor."""
        return {}

    def path(self, call: Call, path: Path) -> Path:
        """The part of the whole schedule that this call visits."""
        return path

    @abstractmethod
    def start(self, call: Call, path: Path) -> Start:
        """The latents at the noise level of the path's first timestep, and what goes with them.

        Random numbers are drawn here, in the reference's order.
        """

    def walk(self, call: Call, path: Path, state: State, go: Go) -> State:
        """From the start to the end of the path; most tasks go it once."""
        return go(state, path)

    def result(self, state: State) -> torch.Tensor:
        """The latents that the pictures are decoded from: where the last step led."""
        return state.latents

    def decode(self, call: Call, latents: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1] of latents, all at once."""
        return call.family.decode(latents, call.noise.generator)

    def finish(self, call: Call, images: Any, output_type: str) -> Any:
        """The pictures that the user gets."""
        return images


def picture_size(family: Family, picture: Any, asked: Size, pictures: int) -> tuple[int, int]:
    """Height and width as asked for or as a picture has them, rounded down to what the latents divide."""
    first = as_list(picture)[0]
    if isinstance(first, torch.Tensor) and first.shape[-3] == family.latent_channels:
        return first.shape[-2] * family.scale_factor, first.shape[-1] * family.scale_factor
    if not is_pil(first) and first.ndim == 3:
        first = first[None]
    height, width = family.image_processor.get_default_height_width(first)
    step = family.picture_step
    size = Size(asked.height or height - height % step, asked.width or width - width % step)
    return size.checked(family.default_size, step, pictures)
