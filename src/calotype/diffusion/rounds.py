"""How often a call samples with the same model, each time from where the time before led."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.tasks.task import Path, Start, Task


class Rounds(ABC):
    """A number of samplings and what each begins with; abstract."""

    count: int

    @abstractmethod
    def begin(
        self, number: int, call: Call, task: Task, path: Path, start: Start, latents: torch.Tensor
    ) -> tuple[Path, torch.Tensor]:
        """The way that sampling ``number`` goes, and the latents at its beginning.

        ``path`` and ``start`` are those of the call, ``latents`` what the sampling before ended with. Random numbers
        may be drawn here.
        """


@dataclass(frozen=True)
class Once(Rounds):
    """The one sampling that a call is without more being said."""

    count: int = 1

    def begin(
        self, number: int, call: Call, task: Task, path: Path, start: Start, latents: torch.Tensor
    ) -> tuple[Path, torch.Tensor]:
        """The call's own way and beginning."""
        return path, start.latents
