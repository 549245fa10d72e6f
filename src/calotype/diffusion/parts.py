"""What a call is the sum of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calotype.diffusion.controls.control import Control
    from calotype.diffusion.family import Family
    from calotype.diffusion.tasks.task import Task


@dataclass(frozen=True)
class Parts:
    """A family bound to its components, a task and the controls, which add up."""

    family: Family
    task: Task
    controls: tuple[Control, ...] = ()

    @property
    def tensor_names(self) -> list[str]:
        """The tensors that a callback may ask for."""
        controls = (name for control in self.controls for name in control.tensor_names)
        return [*self.family.tensor_names, *self.task.tensor_names, *controls]
