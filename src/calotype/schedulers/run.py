"""A plan is what all runs of a schedule share and never changes; a run is where one of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from calotype.core.errors import InputError
from calotype.schedulers.transfer import Level


@dataclass(frozen=True, eq=False)
class Plan:
    """A schedule: ``timesteps`` where the caller wants them, everything else as Python numbers on the host.

    ``sigmas`` (CPU, float32) and ``levels`` have the final level as their last entry; both are None for methods that
    read their levels from the noise table. ``count`` is None before a number of steps was chosen. ``memo`` keeps a
    method's coefficients by what they depend on: computed once, the same for every run.
    """

    timesteps: Tensor | None
    sigmas: Tensor | None = None
    count: int | None = None
    t: tuple[float, ...] = ()
    kappa: tuple[float, ...] = ()
    levels: tuple[Level, ...] = ()
    memo: dict[Any, Any] = field(default_factory=dict)

    def position(self, timestep: Any) -> int | None:
        """Where a timestep stands if it is an element of ``timesteps`` (a view), found without reading its value."""
        table = self.timesteps
        if (
            isinstance(timestep, Tensor)
            and table is not None
            and timestep.numel() == 1
            and timestep.dtype == table.dtype
            and timestep.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()
            and table.stride(0) > 0
        ):
            index = (timestep.storage_offset() - table.storage_offset()) // table.stride(0)
            return index if 0 <= index < len(self.t) else None
        return None

    def value(self, timestep: Any) -> Any:
        """A timestep as a Python number; an element of ``timesteps`` is looked up on the host."""
        if not isinstance(timestep, Tensor):
            return timestep
        position = self.position(timestep)
        return timestep.item() if position is None else self.t[position]

    def index(self, timestep: Any, t: Sequence[float] | None = None) -> int:
        """The step of a timestep. Of a timestep that occurs several times it is the second, as two-stage methods
        need when they start in the middle. Raises ``InputError`` if it is not in the schedule."""
        if t is None:
            if self.position(timestep) == 0:
                return 0
            t = self.t
        value = self.value(timestep)
        matches = [i for i, other in enumerate(t) if other == value]
        if not matches:
            raise InputError(
                f"timestep {value} is not one of the schedule's; give an element of `scheduler.timesteps` "
                f"(after `set_timesteps`): {_abridged(t)}."
            )
        return matches[min(1, len(matches) - 1)]


class Run:
    """Where one run of a plan stands: the next step, the predictions that a multistep method remembers."""

    __slots__ = ("begin", "history", "index", "noise", "plan", "scaled", "stage")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.index: int | None = None
        self.begin: int | None = None
        self.history: Sequence[Any] = ()
        self.stage: Any = None
        self.noise: Any = None
        self.scaled = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def _abridged(t: Sequence[float]) -> str:
    shown = [f"{x:g}" for x in t]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "…", *shown[-5:]])
