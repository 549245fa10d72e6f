"""What a control is to the rest of the library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.loop import State
    from calotype.diffusion.tasks.task import Path, Task


@dataclass(frozen=True)
class Residuals:
    """What is added inside a UNet: to its skip connections, its middle, and within its downward stages."""

    down: tuple[torch.Tensor, ...] | None = None
    mid: torch.Tensor | None = None
    intrablock: tuple[torch.Tensor, ...] | None = None

    def __add__(self, other: Residuals) -> Residuals:
        return Residuals(
            _added(self.down, other.down),
            other.mid if self.mid is None else self.mid if other.mid is None else self.mid + other.mid,
            _added(self.intrablock, other.intrablock),
        )

    def as_arguments(self) -> dict[str, Any]:
        """The UNet's keyword arguments; nothing for what is not there."""
        named = {
            "down_block_additional_residuals": self.down,
            "mid_block_additional_residual": self.mid,
            "down_intrablock_additional_residuals": None
            if self.intrablock is None
            else list(self.intrablock),
        }
        return {name: value for name, value in named.items() if value is not None}


def _added(
    a: tuple[torch.Tensor, ...] | None, b: tuple[torch.Tensor, ...] | None
) -> tuple[torch.Tensor, ...] | None:
    if a is None or b is None:
        return b if a is None else a
    return tuple(x + y for x, y in zip(a, b, strict=True))


Steer = Callable[[int, torch.Tensor, torch.Tensor, "State"], Residuals]
"""(step, stacked and scaled latents, timestep, state) -> what is added in this step."""


@dataclass(frozen=True)
class Steering:
    """A control that is ready for a call: its function, and the tensors that callbacks may see."""

    steer: Steer
    tensors: Mapping[str, torch.Tensor]


class Control(ABC):
    """A picture that steers."""

    tensor_names: tuple[str, ...] = ()
    """The tensors that a callback may ask for."""

    @abstractmethod
    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """Refuse what this control cannot work with, before anything is computed."""

    @abstractmethod
    def prepare(self, call: Call, path: Path, task: Task) -> Steering:
        """The control for this call; it draws no random numbers."""


def together(steerings: Sequence[Steering]) -> Steer | None:
    """All controls as one; None where there are none."""
    if not steerings:
        return None

    def steer(index: int, latents: torch.Tensor, timestep: torch.Tensor, state: State) -> Residuals:
        total = Residuals()
        for each in steerings:
            total = total + each.steer(index, latents, timestep, state)
        return total

    return steer


def with_zeros(residuals: Residuals, seeing: Sequence[str], branches: Sequence[str]) -> Residuals:
    """Residuals of the branches ``seeing``, with zeros for the others of ``branches``."""

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        rows = dict(zip(seeing, tensor.chunk(len(seeing)), strict=True))
        nothing = torch.zeros_like(rows[seeing[0]])
        return torch.cat([rows.get(name, nothing) for name in branches])

    return replace(
        residuals,
        down=None if residuals.down is None else tuple(map(padded, residuals.down)),
        mid=None if residuals.mid is None else padded(residuals.mid),
    )
