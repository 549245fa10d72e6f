"""A plan is what all runs of a schedule share and never changes; a run is where one of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.levels import Level


@dataclass(frozen=True, eq=False)
class Plan:
    """A schedule: ``timesteps`` where the caller wants them, everything else as Python numbers on the host.

    ``sigmas`` (CPU, float32) and ``levels`` have the final level as their last entry; methods that read their levels
    from the noise table have none. ``count`` is None before a number of steps was chosen. ``memo`` keeps a method's
    coefficients by what they depend on: computed once, the same for every run.
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
            shown = [f"{x:g}" for x in t]
            shown = shown if len(shown) <= 12 else [*shown[:6], "…", *shown[-5:]]
            raise InputError(
                f"timestep {value} is not one of the schedule's; give an element of `scheduler.timesteps` "
                f"(after `set_timesteps`): {', '.join(shown)}."
            )
        return matches[min(1, len(matches) - 1)]


@dataclass(slots=True)
class Run:
    """Where one run of a plan stands: the next step, the predictions that a multistep method remembers."""

    plan: Plan
    index: int | None = None
    begin: int | None = None
    history: Sequence[Any] = ()
    stage: Any = None
    noise: Any = None
    scaled: bool = False


@dataclass(slots=True)
class Step:
    """One call of ``step``: the run, the index ``i`` of its next step, and what the caller gave."""

    run: Run
    i: int
    output: Tensor
    timestep: Any
    sample: Tensor

    @property
    def plan(self) -> Plan:
        """The run's."""
        return self.run.plan

    @property
    def t(self) -> int:
        """The training step, for methods that go by it."""
        return int(self.run.plan.value(self.timestep))

    @property
    def last(self) -> bool:
        """Whether no other step comes after this one."""
        return self.i + 1 == len(self.run.plan.t)

    def noise(self, generator: Generators, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal noise shaped as the output, on its device, in its dtype or another."""
        output = self.output
        return randn_tensor(output.shape, generator, output.device, dtype or output.dtype)
