"""A control with a model, a picture, a strength and a range of its own, whatever the family has and the call says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from calotype.diffusion.controls.control import Control, Steering

if TYPE_CHECKING:
    from calotype.diffusion.call import Call
    from calotype.diffusion.family import Family
    from calotype.diffusion.tasks.task import Path, Task


class Beside:
    """A family with components beside its own, as a control looks for them."""

    def __init__(self, family: Any, components: Mapping[str, Any]) -> None:
        self._family = family
        self._components = components

    def __getattr__(self, name: str) -> Any:
        return self._components[name] if name in self._components else getattr(self._family, name)


@dataclass(frozen=True)
class Bound(Control):
    """``control`` with its own ``components`` and ``arguments``; so the same kind may stand several times in a call."""

    control: Control
    components: Mapping[str, Any]
    arguments: Mapping[str, Any]

    @property
    def tensor_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """As the control."""
        return self.control.tensor_names

    def check(self, family: Family, arguments: Mapping[str, Any]) -> None:
        """As the control, of its own arguments."""
        self.control.check(self._beside(family), {**arguments, **self.arguments})

    def prepare(self, call: Call, path: Path, task: Task) -> Steering:
        """The control for this call, with its own model and arguments."""
        own = replace(call, family=self._beside(call.family), arguments={**call.arguments, **self.arguments})
        return self.control.prepare(own, path, task)

    def _beside(self, family: Any) -> Any:
        return Beside(family, self.components)
